"""How one of several usable candidates is picked. Each is a pure function of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nexus.config.routing_records import Weights
from nexus.routing.candidate import Candidate
from nexus.routing.context import RoutingContext


def smart(candidates: Sequence[Candidate], weights: Weights, now: RoutingContext) -> Candidate:
    """The highest score of priority, load and probe latency.

    Those within one request of the highest count as equal: of two of them, taken at random, the
    better one is picked, so that workers and hosts that look at the same moment do not all choose
    the same backend.
    """
    scores = [score(candidate, weights, now) for candidate in candidates]
    least = max(scores) - weights.load
    best = [n for n, points in enumerate(scores) if points >= least]
    if len(best) == 1:
        return candidates[best[0]]
    first, second = _two(len(best), now.chance)
    return candidates[max(best[first], best[second], key=lambda n: (scores[n], n == best[first]))]


def score(candidate: Candidate, weights: Weights, now: RoutingContext) -> float:
    """The weighted sum of priority, load, and latency, each from 0 to 100; higher is better."""
    backend = candidate.backend
    priority = backend.config.priority
    if not 0 <= priority <= 100:
        priority = 0 if priority < 0 else 100
    return (
        (100 - priority) * weights.priority
        + (100 - min(now.load(backend.column), 100)) * weights.load
        + (100 - min((backend.latency_ms or 0.0) / 10, 100)) * weights.latency
    )


def round_robin(
    candidates: Sequence[Candidate], _weights: Weights, now: RoutingContext
) -> Candidate:
    """Each in its turn."""
    return candidates[now.cursor % len(candidates)]


def priority_only(
    candidates: Sequence[Candidate], _weights: Weights, now: RoutingContext
) -> Candidate:
    """The best priority; equal ones share by chance, the less loaded of two."""
    highest = min(candidate.backend.config.priority for candidate in candidates)
    best = [candidate for candidate in candidates if candidate.backend.config.priority == highest]
    if len(best) == 1:
        return best[0]
    first, second = _two(len(best), now.chance)
    return min(best[first], best[second], key=lambda candidate: now.load(candidate.backend.column))


def random(candidates: Sequence[Candidate], _weights: Weights, now: RoutingContext) -> Candidate:
    """Any."""
    return candidates[int(now.chance * len(candidates))]


def _two(count: int, chance: float) -> tuple[int, int]:
    """Two different numbers below `count`, each pair as likely as any other."""
    pair = int(chance * count * (count - 1))
    first, second = divmod(pair, count - 1)
    return first, second + (second >= first)


STRATEGIES: dict[str, Callable[[Sequence[Candidate], Weights, RoutingContext], Candidate]] = {
    "smart": smart,
    "round_robin": round_robin,
    "priority_only": priority_only,
    "random": random,
}
