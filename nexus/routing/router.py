"""Which backend serves a request next, and why; or why none can. What changes by the moment is
in `RoutingContext`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence, Set
from heapq import nsmallest
from typing import Literal, Protocol

import msgspec

from nexus.errors import RequestFailed
from nexus.fleet.records import Backend
from nexus.fleet.status import CLEAR, EndpointStatus
from nexus.routing.needs import ANYTHING, Needs
from nexus.routing.policies import NOTHING, Constraints
from nexus.routing.strategies import STRATEGIES, Circumstances
from nexus.routing.table import Candidate, CandidateSet, RouteTable

Reason = Literal["capability-match", "capacity-overflow", "privacy-requirement", "failover"]
Unavailability = Literal["circuit_open", "busy", "at_capacity"]
Tried = Set[tuple[str, str]]
"""(backend name, model) of the attempts made so far."""

_LISTED = 20
_SECOND_CHANCE = 8191
"""Makes another chance out of the one given, which is independent of it for all that matters
here."""


class RoutingContext(Protocol):
    """What holds at this moment, asked by a backend's column of the shared tables.

    `load`: requests in flight over all workers. `standing` is also asked by the model.
    `waited_for`: whether a request that came earlier waits for room there. `turn` and `chance`: see
    `Circumstances`.
    """

    @property
    def load(self) -> Callable[[int], int]: ...
    @property
    def status(self) -> Callable[[int, str], EndpointStatus]: ...
    @property
    def waited_for(self) -> Callable[[int], bool]: ...
    @property
    def turn(self) -> int: ...
    @property
    def chance(self) -> float: ...


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions that somebody wants to see a choice under."""

    load: Callable[[int], int]
    status: Callable[[int, str], EndpointStatus] = lambda *_: CLEAR
    waited_for: Callable[[int], bool] = lambda _: False
    turn: int = 0
    chance: float = 0.0


class _IgnoringCircuits(msgspec.Struct, frozen=True):
    """The conditions as they are, but no circuit keeps a request from a backend."""

    now: RoutingContext

    def status(self, column: int, model: str) -> EndpointStatus:
        found = self.now.status(column, model)
        return msgspec.structs.replace(found, state="closed") if found.state == "open" else found

    @property
    def load(self) -> Callable[[int], int]:
        return self.now.load

    @property
    def waited_for(self) -> Callable[[int], bool]:
        return self.now.waited_for

    @property
    def turn(self) -> int:
        return self.now.turn

    @property
    def chance(self) -> float:
        return self.now.chance


class RouteQuery(msgspec.Struct, frozen=True, gc=False):
    """A request as the router sees it: the model (aliases resolved), what it must be able to do and
    where it may go.

    `flexible` lets a backend below the demanded tier serve where none of that tier can. `beyond`:
    only candidates whose context is known to be longer; a backend with this length said that the
    request exceeds it. `allows`: whether a model may serve in the place of the requested one; None
    for all.
    """

    model: str
    needs: Needs = ANYTHING
    constraints: Constraints = NOTHING
    flexible: bool = False
    longer_than: int = 0
    allows: Callable[[str], bool] | None = None


class Choice(msgspec.Struct, frozen=True, gc=False):
    """The backend to try, the model to ask it for, and why.

    `trial`: its circuit is half open, one request may try. `passed_over`: others that have the
    model were excluded. `context_length` is the model's, if it is known.
    """

    backend: Backend
    model: str
    reason: Reason
    half_open_probe: bool = False
    has_exclusions: bool = False
    context_length: int | None = None


class AtCapacity(RequestFailed):
    """Backends that could serve take nothing more at this moment; waiting may help.

    `backends` are those to wait for, `ready_in_s` the shortest time for which one of them said that
    it is busy.
    """

    def __init__(
        self, failure: RequestFailed, backends: Sequence[Backend], ready_in_s: float
    ) -> None:
        super().__init__(
            failure.fault, failure.message, headers=failure.headers, context=failure.context
        )
        self.backends = backends
        self.ready_in_s = ready_in_s


def choose(table: RouteTable, asked: RouteQuery, *, tried: Tried, now: RoutingContext) -> Choice:
    """Pick the next backend.

    Backends that were not tried come first, over the whole fallback chain; a backend that failed
    with one model is only then asked for another. Where the circuits of all that could serve are
    open, though their probes are good, the best of them is tried all the same. Raises `AtCapacity`,
    or `RequestFailed` with a fault of routing where waiting does not help.
    """
    blocked: list[tuple[Candidate, EndpointStatus]] = []
    choice = _choose(table, asked, tried, now, blocked)
    if choice is None and not blocked and not tried:
        choice = _choose(table, asked, tried, _IgnoringCircuits(now), blocked)
    if choice is not None:
        return choice
    failure = no_route(table, asked, now)
    if blocked:
        backends = tuple(
            {candidate.backend.name: candidate.backend for candidate, _ in blocked}.values()
        )
        raise AtCapacity(failure, backends, min(status.busy_s for _, status in blocked))
    raise failure


def _choose(
    table: RouteTable,
    asked: RouteQuery,
    tried: Tried,
    now: RoutingContext,
    blocked: list[tuple[Candidate, EndpointStatus]],
) -> Choice | None:
    for constraints in _in_order(asked) if asked.flexible else (asked.constraints,):
        for again in (False, True) if tried else (False,):
            for name in _chain(table, asked):
                suitable = table.suitable(name, asked.needs, constraints)
                candidates: Sequence[Candidate] = suitable.candidates
                if tried:
                    candidates = _untried(candidates, tried, name, again=again)
                if asked.longer_than:
                    candidates = [
                        candidate
                        for candidate in candidates
                        if (candidate.model.context_length or 0) > asked.longer_than
                    ]
                usable = _usable(candidates, name, now, blocked)
                if usable:
                    has_exclusions = len(usable) < suitable.known or name != asked.model
                    if len(usable) > 1:
                        if suitable.lengths_differ:
                            usable = _fitting(usable, asked.needs)
                        usable = [_pick(table, usable, now, first=not tried)]
                    candidate, status = usable[0]
                    reason = _reason(candidate, suitable, asked, name, tried=tried)
                    return Choice(
                        candidate.backend,
                        name,
                        reason,
                        status.state == "half_open",
                        has_exclusions,
                        candidate.model.context_length,
                    )
    return None


def _chain(table: RouteTable, asked: RouteQuery) -> Sequence[str]:
    """The model, then the fallbacks that may serve in its place."""
    chain = table.chain(asked.model, asked.constraints)
    if (allows := asked.allows) is None or len(chain) == 1:
        return chain
    return (chain[0], *(name for name in chain[1:] if allows(name)))


def _in_order(asked: RouteQuery) -> tuple[Constraints, ...]:
    """The demands to try in turn: a flexible request comes back for a lower tier, never for
    another zone."""
    return (
        (asked.constraints, msgspec.structs.replace(asked.constraints, any_tier=True))
        if asked.flexible
        else (asked.constraints,)
    )


def _untried(
    candidates: Sequence[Candidate], tried: Tried, model: str, *, again: bool
) -> Sequence[Candidate]:
    if again:
        return [
            candidate for candidate in candidates if (candidate.backend.name, model) not in tried
        ]
    failed = {backend for backend, _ in tried}
    return [candidate for candidate in candidates if candidate.backend.name not in failed]


def _fitting(
    usable: list[tuple[Candidate, EndpointStatus]], needs: Needs
) -> list[tuple[Candidate, EndpointStatus]]:
    """Those whose known context takes the request, by an estimate, else the longest; an unknown
    one always may."""
    lengths = {candidate.model.context_length for candidate, _ in usable}
    least = min(needs.context, max(length or 0 for length in lengths))
    return [
        entry
        for entry in usable
        if (length := entry[0].model.context_length) is None or length >= least
    ]


def _usable(
    candidates: Sequence[Candidate],
    model: str,
    now: RoutingContext,
    blocked: list[tuple[Candidate, EndpointStatus]],
) -> list[tuple[Candidate, EndpointStatus]]:
    """Those that can take a request for the model now; those that lack room are added to
    `blocked`."""
    usable = []
    for candidate in candidates:
        backend = candidate.backend
        status = now.status(backend.column, model)
        unavailability = (
            None
            if status is CLEAR and backend.limit is None
            else unavailable_now(backend, status, now)
        )
        if unavailability is None:
            usable.append((candidate, status))
        elif unavailability != "circuit_open":
            blocked.append((candidate, status))
    return usable


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


def _pick(
    table: RouteTable,
    usable: list[tuple[Candidate, EndpointStatus]],
    now: RoutingContext,
    *,
    first: bool,
) -> tuple[Candidate, EndpointStatus]:
    if len(usable) == 1:
        return usable[0]
    load = now.load
    if any(status is not CLEAR for _, status in usable):
        # Whether a backend is well again shows only when it is tried: with a request that others
        # can still serve.
        probed_by_others = next((entry for entry in usable if entry[1].state == "half_open"), None)
        if probed_by_others is not None and first:
            return probed_by_others
        # One that came back gets its traffic back little by little, and one that fails fast must
        # not look idle.
        second = now.chance * _SECOND_CHANCE % 1.0
        usable = [entry for entry in usable if entry[1].share > second] or usable
        failures = {candidate.backend.column: status.failures for candidate, status in usable}
        load = lambda column: now.load(column) + failures[column]  # noqa: E731
    if len(usable) == 1:
        return usable[0]
    circumstances = Circumstances(
        load=load, weights=table.routing.weights, turn=now.turn, chance=now.chance
    )
    picked = STRATEGIES[table.routing.strategy](
        [candidate for candidate, _ in usable], circumstances
    )
    return next(entry for entry in usable if entry[0] is picked)


def _reason(
    candidate: Candidate, suitable: CandidateSet, asked: RouteQuery, served: str, *, tried: Tried
) -> Reason:
    if tried or served != asked.model:
        return "failover"
    if asked.constraints.restricted:
        return "privacy-requirement"
    return (
        "capability-match"
        if candidate.backend.config.priority <= suitable.preferred
        else "capacity-overflow"
    )


def no_route(table: RouteTable, asked: RouteQuery, now: RoutingContext) -> RequestFailed:
    """Why no backend can serve: the fault that says most about what the client or the operator
    could change."""
    model, chain = asked.model, _chain(table, asked)
    refusals = _Refusals(table, asked, now)
    if not table.backends:
        return refusals.unavailable("no_backend", "No backend is registered with this gateway.")
    named = [
        (name, candidate)
        for name in chain
        for candidate in table.candidates_for(name)
        if candidate.backend.usable
    ]
    healthy = [candidate for _, candidate in named]
    allowed = [
        (name, candidate)
        for name, candidate in named
        if refusals.constraints(name, candidate).rejects(candidate.backend) is None
    ]
    able = [(name, candidate) for name, candidate in allowed if candidate.can(asked.needs)]
    if able:
        statuses = [now.status(candidate.backend.column, name) for name, candidate in able]
        if all(status.state == "open" for status in statuses):
            ready_in_s = min(status.ready_in_s for status in statuses)
            message = (
                f"Every backend that serves {model!r} has been failing; it is tried again shortly."
            )
            return refusals.unavailable(
                "no_healthy_backend", message, retry_after_s=max(1, math.ceil(ready_in_s))
            )
        busy_s = min(status.busy_s for status in statuses if status.state != "open")
        message = f"Every backend that serves {model!r} is at its limit; try again shortly."
        return refusals.unavailable("at_capacity", message, retry_after_s=max(1, math.ceil(busy_s)))
    if healthy and not allowed and any(candidate.can(asked.needs) for candidate in healthy):
        message = (
            f"The policies for {model!r} allow none of the backends that have it and are healthy."
        )
        return refusals.unavailable("routing_rejected", message, retry_after_s=5)
    if healthy:
        lacking = ", ".join(
            dict.fromkeys(word for candidate in healthy for word in candidate.lacks(asked.needs))
        )
        return RequestFailed(
            "capability_mismatch",
            f"No backend that has {model!r} can do what the request asks for: {lacking}.",
            param="model",
        )
    if table.undiscovered:
        message = f"No backend is known to serve {model!r} yet; the fleet is still being probed."
        return refusals.unavailable("no_healthy_backend", message, retry_after_s=1)
    if len(chain) > 1:
        message = f"No backend serves {model!r} nor its fallbacks {', '.join(chain[1:])}."
        return RequestFailed("fallback_exhausted", message, param="model")
    if len(table.chain(model, asked.constraints)) > 1:
        message = f"No backend serves {model!r} nor a fallback that the key may use."
        return RequestFailed("fallback_exhausted", message, param="model")
    if table.candidates_for(model):
        return refusals.unavailable(
            "no_healthy_backend", f"No healthy backend serves {model!r} now.", retry_after_s=5
        )
    more = len(table.healthy) - _LISTED
    listed = ", ".join(nsmallest(_LISTED, table.healthy)) + (
        f" and {more} more" if more > 0 else ""
    )
    return RequestFailed(
        "model_not_found",
        f"The model {model[:200]!r} does not exist here. Available: {listed or 'none'}.",
        param="model",
    )


class _Refusals:
    """A 503, with the reason for each backend in headers and body, as the original tells them."""

    def __init__(self, table: RouteTable, asked: RouteQuery, now: RoutingContext) -> None:
        self._table = table
        self._asked = asked
        self._now = now

    def constraints(self, model: str, candidate: Candidate) -> Constraints:
        """What is demanded of an offer for a model, by both names; the least that a flexible
        request accepts."""
        return _in_order(self._asked)[-1] | self._table.constraints(model, candidate.model.name)

    def unavailable(
        self, fault: str, message: str, *, retry_after_s: int | None = None
    ) -> RequestFailed:
        table, constraints = self._table, self._asked.constraints
        rejected = [
            {"backend": backend.name, "reason": rejection(table, self._asked, backend, self._now)}
            for backend in table.backends[:_LISTED]
        ]
        headers = {"retry-after": str(retry_after_s)} if retry_after_s else {}
        if rejected:
            headers["x-nexus-rejection-reasons"] = ",".join(
                sorted({entry["reason"] for entry in rejected})
            )
            headers["x-nexus-rejection-details"] = json.dumps(
                rejected
            )  # in ASCII, whatever the names are
        context = {
            "required_tier": constraints.min_tier or None,
            "available_backends": [backend.name for backend in table.backends if backend.usable],
            "eta_seconds": retry_after_s,
            "privacy_zone_required": "restricted" if constraints.restricted else None,
        }
        return RequestFailed(fault, message, headers=headers, context=context)


def exclusions(
    table: RouteTable, asked: RouteQuery, now: RoutingContext, *, chosen: Choice | None
) -> list[str]:
    """Why backends that have the model were excluded, one of `EXCLUSION_REASONS` for each.

    It goes down the fallback chain to the chosen model, and to its end if none was chosen.
    """
    chain = _chain(table, asked)
    if chosen is not None:
        chain = chain[: chain.index(chosen.model) + 1]
    reasons = [
        rejection(table, asked, candidate.backend, now, model=model)
        for model in chain
        for candidate in table.candidates_for(model)
        if chosen is None or candidate.backend is not chosen.backend
    ]
    return [reason for reason in reasons if reason]


def rejection(
    table: RouteTable,
    asked: RouteQuery,
    backend: Backend,
    now: RoutingContext,
    *,
    model: str | None = None,
) -> str:
    """Why this backend cannot serve the request now, with this model or any of the chain; empty
    where it can."""
    if backend.status != "healthy":
        return backend.status
    if backend.draining:
        return "draining"
    chain = (model,) if model is not None else _chain(table, asked)
    candidates = [
        (name, candidate)
        for name in chain
        for candidate in table.candidates_for(name)
        if candidate.backend.name == backend.name
    ]
    if not candidates:
        return "model_not_found"
    able = [(name, candidate) for name, candidate in candidates if candidate.can(asked.needs)]
    if not able:
        return "capability_mismatch"
    least = _in_order(asked)[-1]
    refusals = [
        (least | table.constraints(name, candidate.model.name)).rejects(backend)
        for name, candidate in able
    ]
    if all(refusals):
        return str(refusals[0])
    return unavailable_now(backend, now.status(backend.column, able[0][0]), now) or ""
