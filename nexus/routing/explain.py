"""Why the router would do what it does: every backend with its score or what speaks against it,
and what comes next."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from nexus.errors import RequestFailed
from nexus.routing.router import RouteQuery, RoutingContext, choose, rejection
from nexus.routing.strategies import Circumstances, score
from nexus.routing.table import RouteTable

_MOST_STEPS = 50


class CandidateReport(msgspec.Struct, frozen=True, kw_only=True):
    """One backend with one model of the chain. `out` is why it cannot serve; an empty text where it
    can.

    `turn` is its place in the order in which backends would be tried, from 1.
    """

    backend: str
    model: str
    out: str
    turn: int | None
    score: float | None
    pending: int
    limit: int | None
    circuit: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """`refusal` is the error's code and message where nothing can serve now."""

    asked: str
    resolved: str
    chain: tuple[str, ...]
    restricted: bool
    min_tier: int
    strategy: str
    verdicts: tuple[CandidateReport, ...]
    refusal: tuple[str, str] | None


def explain(table: RouteTable, asked: RouteQuery, now: RoutingContext, *, name: str) -> Explanation:
    """What would be done at this moment with a request for the model that the client calls
    `name`."""
    order: dict[tuple[str, str], int] = {}
    refusal = None
    try:
        while len(order) < _MOST_STEPS:
            choice = choose(table, asked, tried=order.keys(), now=now)
            order[choice.backend.name, choice.model] = len(order) + 1
    except RequestFailed as none_left:
        if not order:
            refusal = none_left.fault.code, none_left.message
    return Explanation(
        asked=name,
        resolved=asked.model,
        chain=table.chain(asked.model, asked.constraints),
        restricted=asked.constraints.restricted,
        min_tier=asked.constraints.min_tier,
        strategy=table.routing.strategy,
        verdicts=tuple(_verdicts(table, asked, now, order)),
        refusal=refusal,
    )


def _verdicts(
    table: RouteTable, asked: RouteQuery, now: RoutingContext, order: dict[tuple[str, str], int]
) -> Iterator[CandidateReport]:
    circumstances = Circumstances(
        load=now.load, weights=table.routing.weights, turn=now.turn, chance=now.chance
    )
    for name in table.chain(asked.model, asked.constraints):
        for backend in table.backends:
            candidate = next(
                (
                    candidate
                    for candidate in table.candidates_for(name)
                    if candidate.backend.name == backend.name
                ),
                None,
            )
            turn = order.get((backend.name, name))
            out = "" if turn is not None else rejection(table, asked, backend, now, model=name)
            yield CandidateReport(
                backend=backend.name,
                model=name,
                out=out,
                turn=turn,
                score=round(score(candidate, circumstances), 1) if candidate and not out else None,
                pending=now.load(backend.column),
                limit=backend.limit,
                circuit=now.status(backend.column, name).state,
            )
