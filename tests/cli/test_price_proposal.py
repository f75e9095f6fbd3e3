"""What a proposal of prices adds to what the package knows."""

from decimal import Decimal
from types import SimpleNamespace

import pytest

from nexus.cli.price_proposal import _record


@pytest.mark.parametrize(
    ("known_as", "hour", "long_hour"),
    [("claude-sonnet-4-5", "6", "12"), ("gpt-5.6-sol", None, None)],
)
def test_only_anthropics_models_have_a_price_of_an_hour(known_as, hour, long_hour):
    """OpenAI's cost as much for a write, but its cache has no hours."""

    def tiers(base, above):
        tier = SimpleNamespace(start=200_000, price=Decimal(above))
        return SimpleNamespace(base=Decimal(base), tiers=[tier])

    prices = SimpleNamespace(
        input_mtok=tiers("3", "6"), cache_write_mtok=tiers("3.75", "7.5"), output_mtok=Decimal(15)
    )
    record = _record("cloud", "m", known_as, prices)
    assert (record.cache_write, record.cache_write_1h) == ("3.75", hour)
    assert (record.above.cache_write, record.above.cache_write_1h) == ("7.5", long_hour)
