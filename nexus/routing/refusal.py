"""The error for a request that no backend can serve now."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from heapq import nsmallest
from typing import Any

from nexus.errors import RequestFailed
from nexus.routing.context import RouteQuery, RoutingContext
from nexus.routing.evaluation import (
    Evaluation,
    accepted_constraints,
    allowed_chain,
    backend_reason,
    evaluate_chain,
)
from nexus.routing.policies import NOTHING, POLICY_REASONS, Constraints
from nexus.routing.table import RouteTable

_LISTED = 20


def no_route(table: RouteTable, query: RouteQuery, now: RoutingContext) -> RequestFailed:
    """Find the fault that says most about what the client or the operator could change."""
    if not table.backends:
        return _unavailable(
            table, query, [], "no_backend", "No backend is registered with this gateway."
        )
    if query.only is not None:
        return unavailable(*sorted(query.only))
    chain = allowed_chain(table, query)
    found = evaluate_chain(table, query, now, chain)
    usable = [one for one in found if one.backend.usable]
    suitable = [one for one in usable if one.suitable]
    if suitable:
        return _none_ready(table, query, now, found, suitable)
    if not usable:
        return _no_usable(table, query, found, chain)
    if any(one.reason in POLICY_REASONS for one in usable) and not any(
        _allowed(table, query, one) for one in usable
    ):
        message = (
            f"The policies for {query.model!r} allow none of the backends that have it and are "
            "healthy."
        )
        return _unavailable(table, query, found, "routing_rejected", message, retry_after_s=5)
    if any(
        one.candidate.understands(query.needs, native=query.native)
        and not one.candidate.lacks(query.needs)
        and _allowed(table, query, one)
        for one in found
        if not one.backend.usable
    ):
        message = f"No healthy backend that has {query.model!r} can serve this request now."
        return _unavailable(table, query, found, "no_healthy_backend", message, retry_after_s=5)
    if all(one.reason == "dialect_not_spoken" for one in usable):
        names = ", ".join(dict.fromkeys(one.backend.name for one in usable[:_LISTED]))
        message = (
            f"No backend that has {query.model!r} speaks the API of this request "
            f"({query.needs.dialect}). It is at {names}."
        )
        return RequestFailed("dialect_not_spoken", message, param="model")
    lacking = ", ".join(
        dict.fromkeys(word for one in usable for word in one.candidate.lacks(query.needs))
    )
    return RequestFailed(
        "capability_mismatch",
        f"No backend that has {query.model!r} can do what the request asks for: {lacking}.",
        param="model",
    )


def unavailable(*backends: str) -> RequestFailed:
    """The failure if backends cannot be reached that alone have what the request needs."""
    message = (
        f"Only {', '.join(backends)} can serve the request, because of what it names or holds "
        "encrypted, and cannot serve it now."
    )
    return RequestFailed("response_unavailable", message, headers={"retry-after": "5"})


def _allowed(table: RouteTable, query: RouteQuery, one: Evaluation) -> bool:
    """Whether policies allow the candidate, able or not."""
    return accepted_constraints(table, query, one.model).rejects(one.backend) is None


def _none_ready(
    table: RouteTable,
    query: RouteQuery,
    now: RoutingContext,
    found: list[Evaluation],
    suitable: list[Evaluation],
) -> RequestFailed:
    """The failure if backends could serve, but none of them at this moment."""
    statuses = [now.status(one.backend.column, one.model) for one in suitable]
    if all(status.state == "open" for status in statuses):
        fault, ready_in_s = "no_healthy_backend", min(status.ready_in_s for status in statuses)
        message = (
            f"Every backend that serves {query.model!r} has been failing; it is tried again "
            "shortly."
        )
    else:
        fault = "at_capacity"
        ready_in_s = min(status.busy_s for status in statuses if status.state != "open")
        message = f"Every backend that serves {query.model!r} is at its limit; try again shortly."
    return _unavailable(
        table, query, found, fault, message, retry_after_s=max(1, math.ceil(ready_in_s))
    )


def _no_usable(
    table: RouteTable, query: RouteQuery, found: list[Evaluation], chain: Sequence[str]
) -> RequestFailed:
    """The failure if no usable backend has a model of the chain."""
    model = query.model
    if table.undiscovered:
        message = f"No backend is known to serve {model!r} yet; the fleet is still being probed."
        return _unavailable(table, query, found, "no_healthy_backend", message, retry_after_s=1)
    if len(chain) > 1:
        message = f"No backend serves {model!r} nor its fallbacks {', '.join(chain[1:])}."
        return RequestFailed("fallback_exhausted", message, param="model")
    if len(table.chain(model, query.constraints)) > 1:
        message = f"No backend serves {model!r} nor a fallback that the key may use."
        return RequestFailed("fallback_exhausted", message, param="model")
    if found:
        message = f"No healthy backend serves {model!r} now."
        return _unavailable(table, query, found, "no_healthy_backend", message, retry_after_s=5)
    more = len(table.healthy) - _LISTED
    listed = ", ".join(nsmallest(_LISTED, table.healthy)) + (
        f" and {more} more" if more > 0 else ""
    )
    return RequestFailed(
        "model_not_found",
        f"The model {model[:200]!r} does not exist here. Available: {listed or 'none'}.",
        param="model",
    )


def _unavailable(
    table: RouteTable,
    query: RouteQuery,
    found: list[Evaluation],
    fault: str,
    message: str,
    *,
    retry_after_s: int | None = None,
) -> RequestFailed:
    """A 503, with the reason of each backend in headers and body."""
    rejected = [
        {
            "backend": backend.name,
            "reason": backend_reason(
                backend, [one for one in found if one.backend.name == backend.name]
            ),
        }
        for backend in table.backends[:_LISTED]
    ]
    headers = {"retry-after": str(retry_after_s)} if retry_after_s else {}
    if rejected:
        headers["x-nexus-rejection-reasons"] = ",".join(
            sorted({entry["reason"] for entry in rejected})
        )
        headers["x-nexus-rejection-details"] = json.dumps(rejected)  # in ASCII, whatever the names
    context = availability(table, query.constraints, retry_after_s=retry_after_s)
    return RequestFailed(fault, message, headers=headers, context=context)


def availability(
    table: RouteTable, constraints: Constraints = NOTHING, *, retry_after_s: int | None
) -> dict[str, Any]:
    """The `context` of a 503: what the request requires, what could serve, and when."""
    return {
        "required_tier": constraints.min_tier or None,
        "available_backends": [backend.name for backend in table.backends if backend.usable],
        "eta_seconds": retry_after_s,
        "privacy_zone_required": "restricted" if constraints.restricted else None,
    }
