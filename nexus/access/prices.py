"""What a request costs, in whole nano-dollars (10^-9 USD). No I/O, no clock.

Prices are integers of 10^-12 USD. A request's cost is rounded once, half up, and its parts add up
to it exactly.
"""

from __future__ import annotations

import fnmatch
import re

import msgspec

from nexus.config import BackendConfig, Config
from nexus.config.cost_records import PER_TOKEN, pico_usd, pico_usd_per_token
from nexus.config.cost_records import Price as PriceRecord

TYPES = ("input", "cached", "cache_write", "output", "request", "image", "time")
"""What a cost consists of, as metrics name it."""
NANO = 1_000_000_000
_MOST_CACHED = 4096
_MICROSECONDS = 1_000_000

Parts = tuple[tuple[str, int], ...]
"""A cost in nano-dollars by type; parts of 0 are left out."""


class Rates(msgspec.Struct, frozen=True):
    """Prices of tokens, in 10^-12 USD for each."""

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    output: int = 0

    def most(self, prompt: int, output: int) -> int:
        """The most that these tokens cost."""
        dearest = max(self.input, self.cached_input, self.cache_write, self.cache_write_1h)
        return prompt * dearest + output * self.output


class Price(msgspec.Struct, frozen=True):
    """What requests to one backend and model cost, in 10^-12 USD.

    Attributes:
        long_rates: Those of prompts with more than `long_above` tokens.
    """

    rates: Rates = Rates()
    long_above: int = 0
    long_rates: Rates | None = None
    per_request: int = 0
    per_image: int = 0
    per_second: int = 0

    def rates_for(self, prompt_tokens: int) -> Rates:
        if self.long_rates is not None and prompt_tokens > self.long_above:
            return self.long_rates
        return self.rates


FREE = Price()


def cost(
    price: Price,
    *,
    prompt: int,
    completion: int,
    cached: int = 0,
    cache_write: int = 0,
    cache_write_1h: int = 0,
    images: int = 0,
    microseconds: int = 0,
) -> Parts:
    """What one response costs.

    `cached` and `cache_write` are among the prompt's tokens, `cache_write_1h` among the latter.
    """
    if price is FREE:
        return ()
    rates = price.rates_for(prompt)
    cached = min(cached, prompt)
    cache_write = min(cache_write, prompt - cached)
    amounts = [("input", (prompt - cached - cache_write) * rates.input)]
    if cached:
        amounts.append(("cached", cached * rates.cached_input))
    if cache_write:
        hour = min(cache_write_1h, cache_write)
        written = (cache_write - hour) * rates.cache_write + hour * rates.cache_write_1h
        amounts.append(("cache_write", written))
    amounts.append(("output", completion * rates.output))
    if price.per_request:
        amounts.append(("request", price.per_request))
    if images:
        amounts.append(("image", images * price.per_image))
    if microseconds:
        amounts.append(("time", price.per_second * microseconds // _MICROSECONDS))
    return _rounded(amounts)


def time_cost(price: Price, microseconds: int) -> int:
    """What a backend's time costs if nothing else of an attempt does, in nano-dollars."""
    return (price.per_second * microseconds // _MICROSECONDS + 500) // 1000


def most(price: Price, prompt: int, output: int, images: int = 0) -> int:
    """The most that a response of up to so many tokens costs, in nano-dollars, without time."""
    dearest = price.rates.most(prompt, output)
    if price.long_rates is not None and prompt > price.long_above:
        dearest = max(dearest, price.long_rates.most(prompt, output))
    return -(-(dearest + price.per_request + images * price.per_image) // 1000)


def total(parts: Parts) -> int:
    return sum([nano for _, nano in parts])


def usd(nano: int) -> str:
    """An amount in US dollars, exact, without trailing zeros: `0.00125`."""
    whole, rest = divmod(abs(nano), NANO)
    sign = "-" if nano < 0 else ""
    return f"{sign}{whole}.{rest:09d}".rstrip("0") if rest else f"{sign}{whole}"


def _rounded(amounts: list[tuple[str, int]]) -> Parts:
    """Amounts of 10^-12 USD in nano-dollars. Each part is rounded so that the sums so far are."""
    parts, so_far, rounded = [], 0, 0
    for type_, amount in amounts:
        so_far += amount
        if nano := (so_far + 500) // 1000 - rounded:
            rounded += nano
            parts.append((type_, nano))
    return tuple(parts)


class Prices:
    """All prices of one configuration."""

    def __init__(self, records: list[PriceRecord]) -> None:
        self._rows = [
            (_pattern(record.backend), _pattern(record.model), _price(record)) for record in records
        ]
        self._known: dict[tuple[str, str], Price | None] = {}

    @classmethod
    def of(cls, config: Config) -> Prices | None:
        """None without prices and budgets."""
        return cls(config.costs.price) if config.costs.price or config.budgets else None

    def find(self, backend: BackendConfig, model: str) -> Price | None:
        """The price of a model at a backend; None if it is not known."""
        key = backend.name, model
        if key not in self._known:
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            default = FREE if backend.provider.self_hosted else None
            self._known[key] = next(
                (
                    price
                    for of_backend, of_model, price in self._rows
                    if of_backend.match(backend.name) and of_model.match(model)
                ),
                default,
            )
        return self._known[key]


def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(glob))


def _price(record: PriceRecord) -> Price:
    rates = _rates(
        record.input,
        record.cached_input,
        record.cache_write,
        record.cache_write_1h,
        record.output,
    )
    tier, long_rates = record.above, None
    if tier is not None:
        written = tier.cache_write or tier.input
        long_rates = _rates(
            tier.input or record.input,
            tier.cached_input or (None if tier.input else record.cached_input),
            written or record.cache_write,
            tier.cache_write_1h or (None if written else record.cache_write_1h),
            tier.output or record.output,
        )
    return Price(
        rates=rates,
        long_above=tier.input_tokens if tier is not None else 0,
        long_rates=long_rates,
        per_request=pico_usd(record.per_request) or 0,
        per_image=pico_usd(record.per_image) or 0,
        per_second=pico_usd(record.per_second) or 0,
    )


def _rates(
    input_: str, cached: str | None, written: str | None, for_an_hour: str | None, output: str
) -> Rates:
    written = written or input_
    texts = (input_, cached or input_, written, for_an_hour or written, output)
    return Rates(
        **{name: pico_usd_per_token(text) or 0 for name, text in zip(PER_TOKEN, texts, strict=True)}
    )
