"""How one of several usable offers is picked. Each is a pure function of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nexus.config.records import Weights
from nexus.routing.table import Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a pick depends on beside the offers.

    `load` gives a backend column's requests in flight; `turn` counts picks, for fairness; `chance` in [0, 1) settles
    ties.
    """

    load: Callable[[int], int]
    weights: Weights
    turn: int
    chance: float


def smart(offers: Sequence[Offer], now: Circumstances) -> Offer:
    """The highest score of priority, load and probe latency; equal scores share by chance."""
    return _best(offers, [score(offer, now) for offer in offers], now.chance)


def score(offer: Offer, now: Circumstances) -> float:
    """The original's score: each part from 0 to 100, times its weight."""
    backend, weights = offer.backend, now.weights
    return (
        (100 - backend.config.priority) * weights.priority
        + (100 - min(now.load(backend.column), 100)) * weights.load
        + (100 - min((backend.latency_ms or 0.0) / 10, 100)) * weights.latency
    )


def round_robin(offers: Sequence[Offer], now: Circumstances) -> Offer:
    return offers[now.turn % len(offers)]


def priority_only(offers: Sequence[Offer], now: Circumstances) -> Offer:
    return _best(offers, [-float(offer.backend.config.priority) for offer in offers], now.chance)


def random(offers: Sequence[Offer], now: Circumstances) -> Offer:
    return offers[int(now.chance * len(offers))]


def _best(offers: Sequence[Offer], scores: Sequence[float], chance: float) -> Offer:
    highest = max(scores)
    best = [offer for offer, points in zip(offers, scores, strict=True) if points == highest]
    return best[int(chance * len(best))]


STRATEGIES: dict[str, Callable[[Sequence[Offer], Circumstances], Offer]] = {
    "smart": smart,
    "round_robin": round_robin,
    "priority_only": priority_only,
    "random": random,
}
