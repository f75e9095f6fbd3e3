"""The records of `[costs]` and of the file of prices: what requests cost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Annotated

import msgspec
from msgspec import Meta

from nexus.config.fields import Section, Text, doc

PER_TOKEN = ("input", "cached_input", "cache_write", "cache_write_1h", "output")
"""The prices in US dollars per million tokens."""
OTHERS = ("per_request", "per_image", "per_second")
"""The prices in US dollars for something else."""
_PICO = 10**12
_MILLION = 10**6
_AMOUNT = re.compile(r"[0-9]{1,7}(\.[0-9]{1,12})?")
SOME_USD = r"^(?=.*[1-9])[0-9]{1,7}(\.[0-9]{1,9}0{0,3})?$"
"""The texts that `nano_usd` reads as more than 0, for JSON schemas."""
_MAX_DECIMALS_PER_TOKEN = 6
"""Prices per million tokens with as many decimals are whole numbers of 10^-12 USD per token."""

Usd = Annotated[str, Meta(title='US dollars in quotes, such as "1.25"')]


def pico_usd(text: str) -> int | None:
    """An amount of US dollars, such as "1.25", in 10^-12 USD; None if it is not one."""
    return int(Decimal(text) * _PICO) if _AMOUNT.fullmatch(text) else None


def nano_usd(text: str) -> int | None:
    """An amount of US dollars in 10^-9 USD; None if it is not one."""
    whole = pico_usd(text)
    return None if whole is None or whole % 1000 else whole // 1000


def pico_usd_per_token(text: str) -> int | None:
    """A price in US dollars per million tokens, in 10^-12 USD per token; None if it is not one."""
    whole = pico_usd(text)
    return None if whole is None or whole % _MILLION else whole // _MILLION


class Tier(Section, frozen=True):
    """Other prices for the tokens of requests with a long prompt."""

    input_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=100_000_000)],
        doc("Requests whose prompt has more tokens have the prices of this table."),
    ]
    input: Annotated[Usd | None, doc("As `input`; unset: the same.")] = None
    cached_input: Annotated[Usd | None, doc("As `cached_input`; unset: `input` of this table.")] = (
        None
    )
    cache_write: Annotated[Usd | None, doc("As `cache_write`; unset: `input` of this table.")] = (
        None
    )
    cache_write_1h: Annotated[
        Usd | None, doc("As `cache_write_1h`; unset: `cache_write` of this table.")
    ] = None
    output: Annotated[Usd | None, doc("As `output`; unset: the same.")] = None


class Price(Section, frozen=True):
    """What requests to matching backends and models cost. The first price that matches counts."""

    backend: Annotated[Text, doc("Glob on the name of the backend.")] = "*"
    model: Annotated[Text, doc("Glob on the name of the model at the backend.")] = "*"
    input: Annotated[Usd, doc("US dollars per million prompt tokens, in quotes.")] = "0"
    cached_input: Annotated[
        Usd | None, doc("Of these, tokens that were read from a cache; unset: `input`.")
    ] = None
    cache_write: Annotated[
        Usd | None, doc("Of these, tokens that were written to a cache; unset: `input`.")
    ] = None
    cache_write_1h: Annotated[
        Usd | None,
        doc("Of these, tokens that Anthropic's cache keeps for an hour; unset: `cache_write`."),
    ] = None
    output: Annotated[Usd, doc("US dollars per million completion tokens.")] = "0"
    above: Annotated[
        Tier | None, doc("Other prices for long prompts: `{ input_tokens = 200000, … }`.")
    ] = None
    per_request: Annotated[Usd, doc("US dollars for each response.")] = "0"
    per_image: Annotated[Usd, doc("US dollars for each image that was made.")] = "0"
    per_second: Annotated[
        Usd, doc("US dollars for each second that a request takes at the backend.")
    ] = "0"


class PriceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file that `[costs] prices` names."""

    version: date | None = None
    price: list[Price] = msgspec.field(default_factory=list)


class Costs(Section, frozen=True):
    """What requests cost."""

    prices: Annotated[
        str,
        doc(
            "File with a `version` and a list of [[price]], beside the configuration file unless "
            "its path is absolute; empty: none."
        ),
    ] = ""
    version: Annotated[
        date | None,
        doc("The day on which the prices were checked, for nexus_prices_age_seconds."),
    ] = None
    persist_seconds: Annotated[
        Annotated[float, Meta(ge=0.1, le=60)],
        doc("How often the ledger of costs and usage is written; so much is lost with the host."),
    ] = 1.0
    price: Annotated[list[Price], doc("Prices as in the file. They take precedence over it.")] = (
        msgspec.field(default_factory=list)
    )


def price_conflicts(prices: list[Price]) -> Iterator[str]:
    """What is wrong with prices whose values all have the right form."""
    for price in prices:
        where = f'price of backend "{price.backend}", model "{price.model}":'
        for name in OTHERS:
            yield from _wrong_amount(f"{where} {name}", getattr(price, name), per_token=False)
        for record in (price, price.above):
            for name in PER_TOKEN if record is not None else ():
                key = name if record is price else f"above.{name}"
                yield from _wrong_amount(f"{where} {key}", getattr(record, name), per_token=True)


def _wrong_amount(where: str, text: str | None, *, per_token: bool) -> Iterator[str]:
    if text is None:
        return
    if (pico_usd_per_token if per_token else pico_usd)(text) is None:
        decimals = _MAX_DECIMALS_PER_TOKEN if per_token else 12
        yield (
            f'{where} = "{text}" is not allowed; it takes US dollars with up to {decimals} '
            'decimals in quotes, such as "1.25".'
        )
