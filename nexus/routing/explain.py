"""Why the router would do what it does: every backend with its score or what speaks against it,
and what comes next."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from nexus.errors import RequestFailed
from nexus.routing.affinity import Result, Source
from nexus.routing.context import RouteQuery, RoutingContext
from nexus.routing.evaluation import backend_reason, evaluate_chain
from nexus.routing.router import choose
from nexus.routing.strategies import score
from nexus.routing.table import RouteTable

_MOST_STEPS = 50


class CandidateReport(msgspec.Struct, frozen=True, kw_only=True):
    """One backend with one model of the chain. `out` is why it cannot serve; an empty text where it
    can.

    `turn` is its place in the order in which backends would be tried, from 1. `translation` is the
    translation that the request would go through; None for none.
    """

    backend: str
    model: str
    out: str
    turn: int | None
    score: float | None
    pending: int
    limit: int | None
    circuit: str
    translation: str | None = None


class SessionReport(msgspec.Struct, frozen=True, kw_only=True):
    """The session of the request, as affinity sees it.

    Attributes:
        source: How it is known: header, body, or prefix.
        result: hit if its home would take the request now, else spill; None if nothing can serve.
        order: The backends in its order, the first of them its home.
    """

    source: Source
    result: Result | None
    order: tuple[str, ...]


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What would happen to a request.

    Attributes:
        affinity: None if the request has no session, or if affinity does not matter for it.
        refusal: The error's code and message if nothing can serve now.
    """

    asked: str
    resolved: str
    chain: tuple[str, ...]
    restricted: bool
    min_tier: int
    strategy: str
    affinity: SessionReport | None
    verdicts: tuple[CandidateReport, ...]
    refusal: tuple[str, str] | None


def explain(table: RouteTable, query: RouteQuery, now: RoutingContext, *, name: str) -> Explanation:
    """What would be done at this moment with a request for the model that the client calls
    `name`."""
    order: dict[tuple[str, str], int] = {}
    refusal = affinity = None
    try:
        while len(order) < _MOST_STEPS:
            choice = choose(table, query, tried=order.keys(), now=now)
            affinity = affinity or choice.affinity
            order[choice.backend.name, choice.model] = len(order) + 1
    except RequestFailed as none_left:
        if not order:
            refusal = none_left.fault.code, none_left.message
    return Explanation(
        asked=name,
        resolved=query.model,
        chain=table.chain(query.model, query.constraints),
        restricted=query.constraints.restricted,
        min_tier=query.constraints.min_tier,
        strategy=table.routing.strategy,
        affinity=_session(table, query, now, affinity and affinity[1]),
        verdicts=tuple(_reports(table, query, now, order)),
        refusal=refusal,
    )


def _session(
    table: RouteTable, query: RouteQuery, now: RoutingContext, result: Result | None
) -> SessionReport | None:
    suitable = table.suitable(query.model, query.needs, query.constraints)
    if not suitable.caching or query.session is None or (session := query.session()) is None:
        return None
    placed = suitable.placement(session, query.model, now.holders)
    order = dict.fromkeys(one.backend.name for one in (*placed.homes, *placed.order))
    return SessionReport(source=session.source, result=result, order=tuple(order))


def _reports(
    table: RouteTable, query: RouteQuery, now: RoutingContext, order: dict[tuple[str, str], int]
) -> Iterator[CandidateReport]:
    for model in table.chain(query.model, query.constraints):
        found = {one.backend.name: one for one in evaluate_chain(table, query, now, (model,))}
        for backend in table.backends:
            one = found.get(backend.name)
            turn = order.get((backend.name, model))
            out = backend_reason(backend, [one] if one else []) if turn is None else ""
            yield CandidateReport(
                backend=backend.name,
                model=model,
                out=out,
                turn=turn,
                score=round(score(one.candidate, table.routing.weights, now), 1)
                if one and not out
                else None,
                pending=now.load(backend.column),
                limit=backend.limit,
                circuit=now.status(backend.column, model).state,
                translation=one.candidate.translation(query.needs) if one else None,
            )
