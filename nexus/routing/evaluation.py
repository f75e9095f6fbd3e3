"""Why a candidate cannot serve a request now: one reason for each, found in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from nexus.fleet.records import Backend
from nexus.fleet.status import CLEAR, EndpointStatus
from nexus.routing.candidate import Candidate
from nexus.routing.context import RouteQuery, RoutingContext
from nexus.routing.policies import POLICY_REASONS, Constraints
from nexus.routing.table import RouteTable

Unavailability = Literal["circuit_open", "busy", "at_capacity"]


class Evaluation(msgspec.Struct, frozen=True):
    """A candidate for one model of the chain, and why it cannot serve; `reason` is None if it
    can.

    A candidate is suitable if only this moment can keep it from serving.
    """

    model: str
    candidate: Candidate
    reason: str | None

    @property
    def backend(self) -> Backend:
        return self.candidate.backend

    @property
    def suitable(self) -> bool:
        return self.backend.usable and self.progress == _SUITABLE

    @property
    def progress(self) -> int:
        """How far a usable backend's candidate gets: capability first, then policy."""
        if self.reason in ("dialect_not_spoken", "capability_mismatch"):
            return 0
        return 1 if self.reason in POLICY_REASONS else _SUITABLE


_SUITABLE = 2


def evaluate(
    table: RouteTable, query: RouteQuery, model: str, candidate: Candidate, now: RoutingContext
) -> Evaluation:
    """Find the first reason why a candidate for `model` cannot serve the request.

    In this order: health, draining, dialect, capability, policy, circuit, a busy backend, its
    limit.
    """
    constraints = accepted_constraints(table, query, model)
    reason = candidate.unsuitable(query.needs, constraints, native=query.native)
    if reason is None:
        backend = candidate.backend
        reason = unavailable_now(backend, now.status(backend.column, model), now)
    return Evaluation(model, candidate, reason)


def evaluate_chain(
    table: RouteTable, query: RouteQuery, now: RoutingContext, chain: Sequence[str]
) -> list[Evaluation]:
    """Evaluate all candidates of these models, in their order."""
    return [
        evaluate(table, query, model, candidate, now)
        for model in chain
        for candidate in table.candidates_for(model)
    ]


def allowed_chain(table: RouteTable, query: RouteQuery) -> Sequence[str]:
    """The model, then the fallbacks that may serve in its place."""
    chain = table.chain(query.model, query.constraints)
    if (allows := query.allows) is None or len(chain) == 1:
        return chain
    return (chain[0], *(name for name in chain[1:] if allows(name)))


def accepted_constraints(table: RouteTable, query: RouteQuery, model: str) -> Constraints:
    """The least that the request and the policies accept for `model`."""
    return query.constraints_in_order[-1] | table.constraints(model, table.entry(model))


def unavailable_now(
    backend: Backend, status: EndpointStatus, now: RoutingContext
) -> Unavailability | None:
    """Why a backend that may serve cannot take a request at this moment."""
    if status is not CLEAR:
        if status.state == "open":
            return "circuit_open"
        if status.busy_s > 0:
            return "busy"
    limit = backend.limit
    if limit is not None and (now.load(backend.column) >= limit or now.waited_for(backend.column)):
        return "at_capacity"
    return None


def backend_reason(backend: Backend, evaluations: Sequence[Evaluation]) -> str:
    """Why a backend cannot serve, from the evaluations of its candidates; empty if it can.

    Of several candidates the one that gets furthest decides.
    """
    if backend.status != "healthy":
        return backend.status
    if backend.draining:
        return "draining"
    if not evaluations:
        return "model_not_found"
    return max(evaluations, key=lambda one: one.progress).reason or ""
