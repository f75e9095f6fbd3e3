"""What `[[limits]]` takes, and what is said of the rest."""

import pytest

from nexus.config.checking import ConfigError
from nexus.config.limit_records import parse_rate
from nexus.config.loading import load


def problems(tmp_path, text: str) -> list[str]:
    file = tmp_path / "nexus.toml"
    file.write_text(text)
    try:
        load(file, environ={})
    except ConfigError as error:
        return [problem.removeprefix(f"{file}: ") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("text", "amount", "seconds"),
    [
        ("60/min", 60, 60),
        ("200k/min", 200_000, 60),
        ("2M/h", 2_000_000, 3600),
        ("5/s", 5, 1),
        ("1/d", 1, 86_400),
    ],
)
def test_rates(text, amount, seconds):
    rate = parse_rate(text)
    assert rate is not None
    assert (rate.amount, rate.period_ns) == (amount, seconds * 10**9)


def test_every_setting_is_taken(tmp_path):
    assert not problems(
        tmp_path,
        '[[teams]]\nname = "t"\n[[limits]]\nname = "a"\n'
        'match = { key = "k*", team = "t", model = "m", endpoint = "e*" }\n'
        'each = ["key", "team", "model", "endpoint"]\nrequests = "60/min"\nburst_requests = 10\n'
        'tokens = "200k/min"\ninput_tokens = "1/s"\noutput_tokens = "1/s"\nparallel = 8\n'
        "parallel_wait_seconds = 2.5\n"
        "reserve_output = 100\ncached_weight = 0.1\nshadow = true\nsuspend = false\n",
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            'requests = "60 a minute"',
            'requests = "60 a minute" is not allowed; it takes a number, optionally k or M, and '
            "/s, /min, /h or /d, such as 200k/min.",
        ),
        (
            'tokens = "0/min"',
            "tokens = 0 refuses every request; set suspend = true if that is meant.",
        ),
        (
            "parallel = 0",
            "parallel = 0 refuses every request; set suspend = true if that is meant.",
        ),
        ('tokens = "20M/s"', 'tokens = "20M/s" is not allowed; at most 10M/s is.'),
        (
            "shadow = true",
            "limits nothing; set requests, tokens, input_tokens, output_tokens or parallel.",
        ),
        ("parallel = 1\nburst_requests = 2", "burst_requests has no effect without requests."),
        (
            'requests = "1/s"\nparallel_wait_seconds = 2',
            "parallel_wait_seconds has no effect without parallel.",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, text, sentence):
    assert problems(tmp_path, f'[[limits]]\nname = "a"\n{text}\n') == [f'[[limits]] "a" {sentence}']


def test_as_many_tokens_as_a_response_can_have(tmp_path):
    one = '[[limits]]\nname = "a"\ntokens = "1k/s"\nreserve_output = '
    assert not problems(tmp_path, f'{one}"full"\n')
    [wrong] = problems(tmp_path, f'{one}"most"\n')
    assert "it takes a whole number from 1 to 1000000" in wrong


def test_zero_may_be_meant(tmp_path):
    assert not problems(tmp_path, '[[limits]]\nname = "a"\nparallel = 0\nsuspend = true\n')


@pytest.mark.parametrize("table", ["teams", "keys"])
@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ('requests = "60/min", tokens = "200k/min", parallel = 8', None),
        ("", "limits nothing; set requests, tokens, input_tokens, output_tokens or parallel."),
        ("parallel = 0", "parallel = 0 refuses every request; block the keys if that is meant."),
    ],
)
def test_limits_of_keys_and_teams(tmp_path, table, limits, problem):
    field = {"teams": 'name = "a"', "keys": f'id = "a"\nsha256 = ["{"0" * 64}"]'}[table]
    found = problems(tmp_path, f"[[{table}]]\n{field}\nlimits = {{ {limits} }}\n")
    assert found == ([] if problem is None else [f'[[{table}]] "a" limits: {problem}'])


def test_their_names_are_not_for_other_limits(tmp_path):
    assert problems(tmp_path, '[[limits]]\nname = "[[keys]]"\nparallel = 1\n') == [
        '[[limits]] "[[keys]]" is not allowed; it names a limit that is configured elsewhere.'
    ]


def test_names_are_unique_and_settings_known(tmp_path):
    one = '[[limits]]\nname = "a"\nparallel = 1\n'
    assert problems(tmp_path, one * 2) == [
        '[[limits]] name = "a" is used twice; each limit needs a name of its own.'
    ]
    [unknown] = problems(tmp_path, f"{one}paralel = 1\n")
    assert "has no key paralel" in unknown
    assert problems(tmp_path, "".join(one.replace('"a"', f'"{n}"') for n in range(51))) == [
        "[[limits]] has 51 entries; at most 50 are allowed."
    ]
