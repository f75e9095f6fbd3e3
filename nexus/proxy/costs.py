"""What one request costs, from what is known of its response."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nexus.access.prices import NANO, Prices, cost, time_cost, total, usd
from nexus.dialects.base import TokenEstimate, Usage
from nexus.fleet.outcome import AttemptRecord, Charge
from nexus.fleet.records import Backend
from nexus.proxy.fleet_view import View

HEADER = "x-nexus-cost-usd"
ESTIMATE_HEADER = "x-nexus-cost-estimated"
_TYPICAL_OUTPUT = 1024
"""Tokens of a response whose length the request does not limit."""


def charge(
    prices: Prices,
    backend: Backend,
    model: str,
    *,
    usage: Usage,
    served: bool,
    estimated_prompt: Callable[[], int],
    images: int,
    seconds: float,
) -> Charge:
    """What the last attempt of a request costs: the response, or the prompt if the client left.

    Tokens that the backend does not report are estimated: a quarter of the prompt's characters,
    and the events of a stream. A stream that broke off costs what came.
    """
    price = prices.find(backend.config, model)
    if price is None:
        return Charge(unpriced=served)
    prompt = usage.prompt_tokens
    parts = cost(
        price,
        prompt=estimated_prompt() if prompt is None else prompt,
        completion=usage.completion_tokens or 0,
        cached=usage.cached_tokens or 0,
        cache_write=usage.cache_write_tokens or 0,
        cache_write_1h=usage.cache_write_1h_tokens,
        images=images,
        microseconds=round(seconds * 1e6) if price.per_second else 0,
    )
    return Charge(parts)


def retried(
    view: View, prices: Prices, failed: Sequence[AttemptRecord]
) -> tuple[tuple[str, str, int], ...]:
    """What failed attempts cost: the backend's time, since a failed response reports no tokens."""
    costs = []
    for record in failed:
        backend = next((one for one in view.snapshot.backends if one.name == record.backend), None)
        price = prices.find(backend.config, record.model) if backend is not None else None
        if backend is not None and price is not None and price.per_second:
            nano = time_cost(price, round(record.ms * 1000))
            costs.append((backend.label, view.model_label(record.model), nano))
    return tuple(costs)


def estimate_header(
    prices: Prices, backend: Backend, model: str, estimate: TokenEstimate
) -> list[tuple[str, str]]:
    """The header that says what a response of a cloud backend will cost, by an estimate."""
    price = prices.find(backend.config, model) if backend.cloud else None
    if price is None:
        return []
    output = _TYPICAL_OUTPUT if estimate.output_limit is None else estimate.output_limit
    parts = cost(price, prompt=estimate.prompt, completion=output * estimate.choices)
    return [(ESTIMATE_HEADER, f"{total(parts) / NANO:.4f}")]


def cost_header(charge: Charge | None) -> list[tuple[str, str]]:
    """The header that says what a whole response costs, if that is known."""
    if charge is None or charge.unpriced:
        return []
    return [(HEADER, usd(charge.total))]
