"""What `[costs]` and the file of prices take."""

import pytest

from nexus.config.checking import ConfigError
from nexus.config.loading import load

FILE = """
version = "2026-11-27"
[[price]]
backend = "azure-*"
model = "gpt-5*"
input = "1.25"
cached_input = "0.125"
cache_write = "0"
output = "10.00"
above = { input_tokens = 200000, input = "2.50", output = "15.00" }
per_request = "0"
per_second = "0"
"""


def loaded(tmp_path, prices: str, config: str = '[costs]\nprices = "prices.toml"\n'):
    (tmp_path / "prices.toml").write_text(prices)
    file = tmp_path / "nexus.toml"
    file.write_text(config)
    return load(file, environ={}).config.costs


def problem(tmp_path, prices: str, **more: str) -> str:
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, prices, **more)
    [told] = refused.value.problems
    return told.replace(f"{tmp_path}/", "")


def test_the_file_of_prices(tmp_path):
    costs = loaded(tmp_path, FILE)
    assert str(costs.version) == "2026-11-27"
    [price] = costs.price
    assert (price.backend, price.input, price.above.output) == ("azure-*", "1.25", "15.00")


def test_prices_in_the_configuration_come_first(tmp_path):
    config = '[costs]\nprices = "prices.toml"\n[[costs.price]]\nmodel = "own"\n'
    assert [price.model for price in loaded(tmp_path, FILE, config).price] == ["own", "gpt-5*"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '[[price]]\ninput = "1,25"\n',
            'prices.toml: price of backend "*", model "*": input = "1,25" is not allowed; it takes '
            'US dollars with up to 6 decimals in quotes, such as "1.25".',
        ),
        (
            '[[price]]\nabove = { input_tokens = 5, output = "0.0000001" }\n',
            'prices.toml: price of backend "*", model "*": above.output = "0.0000001" is not '
            'allowed; it takes US dollars with up to 6 decimals in quotes, such as "1.25".',
        ),
        (
            '[[price]]\nmodel = "m"\nper_second = "-1"\n',
            'prices.toml: price of backend "*", model "m": per_second = "-1" is not allowed; it '
            'takes US dollars with up to 12 decimals in quotes, such as "1.25".',
        ),
        (
            "[[price]]\ninput = 1.25\n",
            "prices.toml: [price[0]] input = 1.25 is not allowed; it takes US dollars in quotes, "
            'such as "1.25".',
        ),
        (
            '[[prices]]\ninput = "1"\n',
            "prices.toml: the file has no key prices; did you mean price?",
        ),
    ],
)
def test_what_is_wrong_with_it(tmp_path, text, sentence):
    assert problem(tmp_path, text) == sentence


def test_a_missing_file(tmp_path):
    told = problem(tmp_path, FILE, config='[costs]\nprices = "none.toml"\n')
    assert told == "none.toml: there is no such file; [costs] prices names it."


def test_a_budget_whose_name_cannot_be_stored(tmp_path):
    name = '[[budgets]]\nname = "a\\u0000b"\nusd = "1"\n'
    told = problem(tmp_path, FILE, config=name)
    assert (
        told
        == "nexus.toml: [[budgets]] name = 'a\\x00b' has a null character, which none may have."
    )
