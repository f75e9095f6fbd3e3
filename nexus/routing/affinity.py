"""Affinity: a conversation comes back to the backend that has its prompt in its cache.

Nothing is stored for it. Every worker and every host puts the candidates of a session into the
same order, so they agree on its home without talking to each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Literal

import msgspec

from nexus.config.routing_records import Affinity
from nexus.routing.candidate import Candidate

Source = Literal["header", "body", "prefix"]
"""Where the session of a request is known from."""
Result = Literal["hit", "spill"]
"""Whether the session's home took the request, or another backend."""

_UNLIMITED = 16
"""The weight of a backend without a limit, in requests at once."""


class Session(msgspec.Struct, frozen=True, gc=False):
    """What a request's placement depends on: the digest of its session's id, or of the start of
    its prompt."""

    source: Source
    digest: bytes

    @classmethod
    def of(cls, source: Source, value: bytes, scope: str) -> Session:
        """`scope`: sessions of different scopes never meet, whatever their values."""
        return cls(source, blake2b(value, digest_size=16, key=_key(scope)).digest())

    @property
    def chance(self) -> float:
        """A number in [0, 1) of its own, so that a recovered backend gets back whole sessions."""
        return int.from_bytes(self.digest[:6], "big") / (1 << 48)


@lru_cache(maxsize=4096)
def _key(scope: str) -> bytes:
    return blake2b(scope.encode(), digest_size=32).digest()


def weight(candidate: Candidate) -> int:
    """The backend's part of the sessions: how many requests it takes at once."""
    return candidate.backend.limit or _UNLIMITED


def rendezvous_order(
    candidates: Sequence[Candidate], session: Session, model: str
) -> tuple[Candidate, ...]:
    """The candidates in the session's order: by priority, then by weighted rendezvous hashing.

    If a backend goes, only its own sessions move, each to the next of its order. If it comes back,
    so do they.
    """
    key = session.digest + model.encode(errors="replace")

    def rank(candidate: Candidate) -> tuple[int, float]:
        name = candidate.backend.name.encode(errors="replace")
        number = int.from_bytes(blake2b(key + b"\0" + name, digest_size=8).digest(), "big")
        return (
            candidate.backend.config.priority,
            math.log((number + 1) / ((1 << 64) + 1)) / weight(candidate),
        )

    return tuple(sorted(candidates, key=lambda one: (rank(one)[0], -rank(one)[1])))


def within_load(
    order: Sequence[Candidate], load: Callable[[int], int], settings: Affinity
) -> Candidate:
    """The first in the order that is not overloaded in comparison with the others.

    A backend may have `load_factor` times its part of all requests in flight, and always
    `load_margin` more than the least loaded one. So one always can.
    """
    loads = [load(candidate.backend.column) for candidate in order]
    if not any(loads):
        return order[0]
    weights = [weight(candidate) for candidate in order]
    part = settings.load_factor * sum(loads) / sum(weights)
    least = min(map(float.__truediv__, map(float, loads), map(float, weights)))
    for candidate, current, own in zip(order, loads, weights, strict=True):
        if current <= max(part * own, least * own + settings.load_margin):
            return candidate
    return order[loads.index(min(loads))]
