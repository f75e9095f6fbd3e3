"""Which backend serves a request next, and why; or why none can."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from nexus.errors import RequestFailed
from nexus.fleet.records import Backend
from nexus.routing.requirements import Requirements
from nexus.routing.strategies import STRATEGIES, Circumstances
from nexus.routing.table import Offer, RouteTable

Reason = Literal["capability-match", "capacity-overflow", "privacy-requirement", "failover"]
Tried = Set[tuple[str, str]]
"""(backend name, model) of the attempts made so far."""

_LISTED = 20


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend to try, the model to ask it for, and why it was picked."""

    backend: Backend
    model: str
    reason: Reason


def choose(
    table: RouteTable,
    *,
    model: str,
    needs: Requirements,
    tried: Tried,
    load: Callable[[int], int],
    turn: int,
    chance: float,
) -> Choice:
    """Pick the next backend for `model` (aliases resolved).

    Backends that were not tried come first, over the whole fallback chain; a backend that failed with one model is only
    then asked for another. Raises `RequestFailed` with a fault of routing where nothing is left.
    """
    now = Circumstances(load=load, weights=table.routing.weights, turn=turn, chance=chance)
    pick = STRATEGIES[table.routing.strategy]
    failed = {backend for backend, _ in tried}
    for again in (False, True) if tried else (False,):
        for name in table.chain(model):
            usable = [
                offer
                for offer in table.healthy.get(name, ())
                if offer.meets(needs)
                and not _full(offer, load)
                and ((offer.backend.name, name) not in tried if again else offer.backend.name not in failed)
            ]
            if usable:
                offer = pick(usable, now)
                return Choice(offer.backend, name, _reason(offer, table, model, name, tried=tried, needs=needs))
    raise no_route(table, model, needs)


def _reason(offer: Offer, table: RouteTable, asked: str, served: str, *, tried: Tried, needs: Requirements) -> Reason:
    if tried or served != asked:
        return "failover"
    preferred = min(o.backend.config.priority for o in table.healthy[served] if o.meets(needs))
    return "capability-match" if offer.backend.config.priority <= preferred else "capacity-overflow"


def _full(offer: Offer, load: Callable[[int], int]) -> bool:
    limit = offer.backend.config.max_concurrent
    return limit is not None and load(offer.backend.column) >= limit


def no_route(table: RouteTable, model: str, needs: Requirements) -> RequestFailed:
    """Why no backend can serve: the fault that says most about what the client or the operator could change."""
    chain = table.chain(model)
    healthy = [offer for name in chain for offer in table.healthy.get(name, ())]
    if not table.backends:
        return _unavailable("no_backend", "No backend is registered with this gateway.", table, chain)
    if any(offer.meets(needs) for offer in healthy):
        message = f"Every backend that serves {model!r} is at its limit; try again shortly."
        return _unavailable("at_capacity", message, table, chain, retry_after_s=1)
    if healthy:
        return RequestFailed(
            "capability_mismatch",
            f"No backend offers {model!r} with what the request asks for: {_wants(needs)}.",
            param="model",
        )
    if table.undiscovered:
        message = f"No backend is known to serve {model!r} yet; the fleet is still being probed."
        return _unavailable("no_healthy_backend", message, table, chain, retry_after_s=1)
    if len(chain) > 1:
        return RequestFailed(
            "fallback_exhausted",
            f"No backend serves {model!r} nor its fallbacks {', '.join(chain[1:])}.",
            param="model",
        )
    if model in table.offers:
        message = f"No healthy backend serves {model!r} now."
        return _unavailable("no_healthy_backend", message, table, chain, retry_after_s=5)
    known = sorted(table.healthy)
    listed = ", ".join(known[:_LISTED]) + (f" and {len(known) - _LISTED} more" if len(known) > _LISTED else "")
    return RequestFailed(
        "model_not_found",
        f"The model {model[:200]!r} does not exist here. Available: {listed or 'none'}.",
        param="model",
    )


def _wants(needs: Requirements) -> str:
    wants = [
        word for word, on in (("vision", needs.vision), ("tools", needs.tools), ("JSON mode", needs.json_mode)) if on
    ]
    return ", ".join([*wants, f"a context of {needs.context} tokens"])


def _unavailable(
    fault: str, message: str, table: RouteTable, chain: Sequence[str], *, retry_after_s: int | None = None
) -> RequestFailed:
    """A 503, with the reason for each backend in headers and body, as the original tells them."""
    rejected = [{"backend": backend.name, "reason": _rejection(backend, chain)} for backend in table.backends[:_LISTED]]
    headers = {"retry-after": str(retry_after_s)} if retry_after_s else {}
    if rejected:
        headers["x-nexus-rejection-reasons"] = ",".join(sorted({entry["reason"] for entry in rejected}))
        headers["x-nexus-rejection-details"] = json.dumps(rejected)  # in ASCII, whatever the names are
    context = {
        "required_tier": None,
        "available_backends": [backend.name for backend in table.backends if backend.status == "healthy"],
        "eta_seconds": retry_after_s,
        "privacy_zone_required": None,
    }
    return RequestFailed(fault, message, headers=headers, context=context)


def _rejection(backend: Backend, chain: Sequence[str]) -> str:
    if backend.status != "healthy":
        return backend.status
    return "at_capacity" if any(model.name in chain for model in backend.models) else "model_not_found"
