"""Chooses the backend that serves a request next. What changes by the moment is in
`RoutingContext`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from nexus.errors import RequestFailed
from nexus.fleet.records import Backend
from nexus.fleet.status import CLEAR, EndpointStatus
from nexus.routing.affinity import Placement, Result, Source
from nexus.routing.candidate import Candidate
from nexus.routing.context import RouteQuery, RoutingContext, Tried, ignoring_circuits, with_load
from nexus.routing.evaluation import allowed_chain, evaluate_chain, unavailable_now
from nexus.routing.needs import Needs
from nexus.routing.refusal import no_route
from nexus.routing.strategies import STRATEGIES
from nexus.routing.table import CandidateSet, RouteTable

Reason = Literal["capability-match", "capacity-overflow", "privacy-requirement", "failover"]

_SECOND_CHANCE = 8191
"""Makes another chance out of the one given, which is independent of it for all that matters
here."""


class Choice(msgspec.Struct, frozen=True, gc=False):
    """The backend to try, the model to request there, and why.

    Attributes:
        half_open_probe: Its circuit is half open, and one request may probe it.
        has_exclusions: Others that have the model were excluded.
        context_length: The model's, if it is known.
        affinity: How the session is known, and whether this is its home; None if that did not
            matter.
        prefixes: Keys of starts of the prompt that the backend is recorded to get.
        translation: The translation that the request goes through; None if it needs none.
    """

    backend: Backend
    model: str
    reason: Reason
    half_open_probe: bool = False
    has_exclusions: bool = False
    context_length: int | None = None
    affinity: tuple[Source, Result] | None = None
    prefixes: Sequence[int] = ()
    translation: str | None = None


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


def choose(table: RouteTable, query: RouteQuery, *, tried: Tried, now: RoutingContext) -> Choice:
    """Pick the next backend.

    Backends that were not tried come first, over the whole fallback chain. Only then does a backend
    that failed with one model get the request for another. If the circuits of all that could serve
    are open, although their probes are good, the best of them is tried all the same. Raises
    `AtCapacity`, or `RequestFailed` with a fault of routing if waiting does not help.
    """
    blocked: list[tuple[Candidate, EndpointStatus]] = []
    choice = _choose(table, query, tried, now, blocked)
    if choice is None and not blocked and (not tried or query.native):
        choice = _choose(table, query, tried, ignoring_circuits(now), blocked)
    if choice is not None:
        return choice
    if not blocked:
        raise no_route(table, query, now)
    backends = tuple(
        {candidate.backend.name: candidate.backend for candidate, _ in blocked}.values()
    )
    busy_s = min(status.busy_s for _, status in blocked)
    raise AtCapacity(no_route(table, query, now), backends, busy_s)


def _choose(
    table: RouteTable,
    query: RouteQuery,
    tried: Tried,
    now: RoutingContext,
    blocked: list[tuple[Candidate, EndpointStatus]],
) -> Choice | None:
    for constraints in query.constraints_in_order if query.flexible else (query.constraints,):
        for again in (False, True) if tried else (False,):
            for name in allowed_chain(table, query):
                suitable = table.suitable(name, query.needs, constraints)
                candidates: Sequence[Candidate] = suitable.candidates
                translations = suitable.translations
                if tried:
                    candidates = _untried(candidates, tried, name, again=again)
                candidates = _accepted(candidates, query, translations)
                usable = _usable(candidates, name, now, blocked)
                if not usable:
                    continue
                has_exclusions = len(usable) < suitable.known or name != query.model
                home = None
                if suitable.caching and query.session and (session := query.session()):
                    home = suitable.placement(session, name, now.holders)
                if len(usable) > 1:
                    if translations:
                        usable = _native_first(usable, translations)
                    if suitable.lengths_differ:
                        usable = _fitting(usable, query.needs)
                    usable = [_pick(table, suitable, usable, now, home, first=not tried)]
                candidate, status = usable[0]
                reason = _reason(candidate, suitable, query, name, tried=tried)
                column = candidate.backend.column
                affinity: tuple[Source, Result] | None = None
                keys: Sequence[int] = ()
                if home is not None:
                    is_home = home.is_home(candidate)
                    affinity = home.session.source, "hit" if is_home else "spill"
                    keys = home.new_keys(is_home=is_home)
                return Choice(
                    candidate.backend,
                    name,
                    reason,
                    status.state == "half_open",
                    has_exclusions,
                    candidate.model.context_length,
                    affinity,
                    keys,
                    translations.get(column) if translations else None,
                )
    return None


def _untried(
    candidates: Sequence[Candidate], tried: Tried, model: str, *, again: bool
) -> Sequence[Candidate]:
    if again:
        return [
            candidate for candidate in candidates if (candidate.backend.name, model) not in tried
        ]
    failed = {backend for backend, _ in tried}
    return [candidate for candidate in candidates if candidate.backend.name not in failed]


def _accepted(
    candidates: Sequence[Candidate], query: RouteQuery, translations: Mapping[int, str]
) -> Sequence[Candidate]:
    """Those that the request accepts, after what backends said of it, and by what it names."""
    if query.longer_than:
        candidates = [
            one for one in candidates if (one.model.context_length or 0) > query.longer_than
        ]
    if query.native:
        candidates = [one for one in candidates if one.backend.column not in translations]
    if query.only is not None:
        candidates = [one for one in candidates if one.backend.name in query.only]
    return candidates


def _native_first(
    usable: list[tuple[Candidate, EndpointStatus]], translations: Mapping[int, str]
) -> list[tuple[Candidate, EndpointStatus]]:
    """Without those that need a translation, where one of the same priority needs none."""
    native = {
        candidate.backend.config.priority
        for candidate, _ in usable
        if candidate.backend.column not in translations
    }
    return [
        entry
        for entry in usable
        if entry[0].backend.column not in translations
        or entry[0].backend.config.priority not in native
    ]


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


def _pick(
    table: RouteTable,
    suitable: CandidateSet,
    usable: list[tuple[Candidate, EndpointStatus]],
    now: RoutingContext,
    home: Placement | None,
    *,
    first: bool,
) -> tuple[Candidate, EndpointStatus]:
    if len(usable) == 1:
        return usable[0]
    if any(status is not CLEAR for _, status in usable):
        # Whether a backend is well again shows only when it is tried: with a request that others
        # can still serve.
        half_open = next((entry for entry in usable if entry[1].state == "half_open"), None)
        if half_open is not None and first:
            return half_open
        # One that came back gets its traffic back little by little, and one that fails fast must
        # not look idle.
        second = home.session.chance if home else now.chance * _SECOND_CHANCE % 1.0
        usable = [entry for entry in usable if entry[1].share > second] or usable
        failures = {candidate.backend.column: status.failures for candidate, status in usable}
        load = now.load
        now = with_load(now, lambda column: load(column) + failures[column])
    if len(usable) == 1:
        return usable[0]
    picked = usable[0][0]
    if home is None or not suitable.one_priority:
        picked = STRATEGIES[table.routing.strategy](
            [candidate for candidate, _ in usable], table.routing.weights, now
        )
    priority = picked.backend.config.priority
    if home is not None and priority in suitable.caching:
        # The strategy has decided on a priority; affinity decides between those who have it.
        columns = [
            candidate.backend.column
            for candidate, _ in usable
            if candidate.backend.config.priority == priority
        ]
        picked = home.within_load(columns, now.load, table.affinity, now.repeats)
    return next(entry for entry in usable if entry[0] is picked)


def _reason(
    candidate: Candidate, suitable: CandidateSet, query: RouteQuery, served: str, *, tried: Tried
) -> Reason:
    if tried or served != query.model:
        return "failover"
    if query.constraints.restricted:
        return "privacy-requirement"
    return (
        "capability-match"
        if candidate.backend.config.priority <= suitable.preferred
        else "capacity-overflow"
    )


def exclusions(
    table: RouteTable, query: RouteQuery, now: RoutingContext, *, chosen: Choice | None
) -> list[str]:
    """Why backends that have the model were excluded, one of `EXCLUSION_REASONS` for each.

    It goes down the fallback chain to the chosen model, and to its end if none was chosen.
    """
    chain = allowed_chain(table, query)
    if chosen is not None:
        chain = chain[: chain.index(chosen.model) + 1]
    backend = chosen and chosen.backend
    found = evaluate_chain(table, query, now, chain)
    return [one.reason for one in found if one.reason and one.backend is not backend]
