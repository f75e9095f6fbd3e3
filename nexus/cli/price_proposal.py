"""A proposal of prices for the fleet's models, from the optional package genai-prices."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from nexus.access.prices import Price, Prices, Rates
from nexus.config.cost_records import PER_TOKEN, Tier
from nexus.config.cost_records import Price as PriceRecord
from nexus.config.template import toml
from nexus.fleet.records import Backend

_THEIRS = {
    "input": "input_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "output": "output_mtok",
}
"""Our names of prices for tokens, and theirs."""
_MILLIONTH = Decimal("0.000001")


def proposed_price(backend: Backend, model: str) -> PriceRecord | None:
    """What a vendor charges for a model, as the package knows; None if it does not.

    The vendor is found by the backend's address, else by its type. Raises ImportError.
    """
    from genai_prices.data_snapshot import get_snapshot

    known = get_snapshot()
    for vendor, url in ((None, backend.config.url), (backend.config.type, None)):
        try:
            _, found = known.find_provider_model(model, None, vendor, url)
        except LookupError:
            continue
        return _record(backend.name, model, found.id, found.get_prices(datetime.now(UTC)))
    return None


def _record(backend: str, model: str, known_as: str, prices: Any) -> PriceRecord | None:
    """The price in our form: a tier applies to the whole request in theirs, too."""
    base: dict[str, str] = {}
    above: dict[str, str] = {}
    start = 0
    for ours, theirs in _THEIRS.items():
        price = getattr(prices, theirs, None)
        if price is None:
            continue
        base[ours] = _text(getattr(price, "base", price))
        if tiers := getattr(price, "tiers", None):
            start, above[ours] = tiers[0].start, _text(tiers[0].price)
    if not base:
        return None
    if "claude" in known_as:
        for one in (base, above):
            _add_hour(one)
    tier = Tier(input_tokens=start, **above) if start else None
    return PriceRecord(backend=glob.escape(backend), model=glob.escape(model), above=tier, **base)


def _add_hour(prices: dict[str, str]) -> None:
    """Add Anthropic's price of an hour in its cache, which is twice the input's; the package does
    not know it."""
    if "cache_write" in prices and "input" in prices:
        prices["cache_write_1h"] = _text(Decimal(prices["input"]) * 2)


def _text(price: Decimal) -> str:
    return f"{Decimal(price).quantize(_MILLIONTH):f}".rstrip("0").rstrip(".")


def as_toml(backend: Backend, model: str, price: Price | None) -> Iterator[str]:
    """The lines of one [[price]], in the same form for every price of the same amounts."""
    yield "[[price]]"
    yield f"backend = {toml(glob.escape(backend.name))}"
    yield f"model = {toml(glob.escape(model))}"
    if price is None:
        yield "# no price"
        return
    yield from (f"{name} = {toml(amount)}" for name, amount in _amounts(price.rates))
    if price.long_rates is not None:
        rates = ", ".join(f"{name} = {toml(one)}" for name, one in _amounts(price.long_rates))
        yield f"above = {{ input_tokens = {price.long_above}, {rates} }}"


def _amounts(rates: Rates) -> Iterator[tuple[str, str]]:
    for name in PER_TOKEN:
        if name == "cache_write_1h" and rates.cache_write_1h == rates.cache_write:
            continue
        yield name, _text(Decimal(getattr(rates, name)) * _MILLIONTH)


def compiled(record: PriceRecord, backend: Backend, model: str) -> Price | None:
    """A record as the gateway uses it."""
    return Prices([record]).find(backend.config, model)
