"""Affinity: a conversation comes back to the backend that has its prompt in its cache.

Every worker and every host puts the candidates of a session into the same order, so they agree on
its home without talking to each other. For a session without an id, the backends that have served
the longest start of its prompt go first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Literal, NamedTuple
from zlib import crc32

import msgspec

from nexus.config.routing_records import Affinity
from nexus.routing.candidate import Candidate

Source = Literal["header", "body", "prefix"]
"""Where the session of a request is known from."""
Result = Literal["hit", "spill"]
"""Whether the session's home took the request, or another backend."""

_LEAST_PREFIX = 1024
LONGEST_PREFIX = 64 * 1024
"""Bytes of a prompt that are compared with earlier ones."""
_ROUNDING = 1e-9
_UNLIMITED = 16
"""The weight of a backend without a limit, in requests at once."""


class Session(msgspec.Struct, frozen=True, gc=False):
    """What a request's placement depends on.

    Attributes:
        source: How the session is known.
        digest: The digest of its id, or of the start of its prompt.
        prefixes: Keys of starts of the prompt, the longest first; empty if it has an id.
    """

    source: Source
    digest: bytes
    prefixes: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, source: Source, value: bytes, scope: str, *, prefixes: tuple[int, ...] = ()
    ) -> Session:
        """`scope`: sessions of different scopes never meet, whatever their values."""
        digest = blake2b(value, digest_size=16, key=_key(scope)).digest()
        return cls(source, digest, prefixes)

    @property
    def chance(self) -> float:
        """A number in [0, 1) of its own, so that a recovered backend gets back whole sessions."""
        return int.from_bytes(self.digest[:6], "big") / (1 << 48)


@lru_cache(maxsize=4096)
def _key(scope: str) -> bytes:
    return blake2b(scope.encode(), digest_size=32).digest()


def prefix_keys(prompt: bytes, first: int, scope: str) -> tuple[int, ...]:
    """The keys of starts of a prompt, the longest first.

    The starts end at powers of two, from a quarter of the prompt on: a shorter one says little
    about where the rest is cached. One more ends where the first message does, after `first` bytes.
    """
    ends = {first}
    border = _LEAST_PREFIX
    while border <= len(prompt):
        if border * 4 >= len(prompt):
            ends.add(border)
        border *= 2
    keys, start, view = [], 0, memoryview(prompt)
    checksum = crc32(scope.encode(errors="replace"))
    for end in sorted(ends):
        checksum = crc32(view[start:end], checksum)
        keys.append((end << 32 | checksum) + 1)
        start = end
    return tuple(reversed(keys))


class Placement(NamedTuple):
    """The candidates in a session's order.

    Attributes:
        homes: The first so many of them are the session's home.
        known_bytes: How long the longest start of the prompt is that a home has served; 0 if none
            has, None if the session has an id.
    """

    session: Session
    order: Sequence[Candidate]
    homes: int = 1
    known_bytes: int | None = None

    def affinity(self, candidate: Candidate) -> tuple[Source, Result]:
        """How the session is known, and whether this is its home."""
        is_home = any(one is candidate for one in self.order[: self.homes])
        return self.session.source, "hit" if is_home else "spill"

    def within_load(
        self, columns: Sequence[int], load: Callable[[int], int], settings: Affinity
    ) -> Candidate:
        """The first of the backends in these columns that is not overloaded, compared with the
        others. Of several homes the least loaded one comes first.

        A backend may have `load_factor` times its part of all requests in flight, and always
        `load_margin` more than the least loaded one. So one always can.
        """
        factor, margin = self._limits(settings)
        if self.homes == 1:
            first = next(one for one in self.order if one.backend.column in columns)
            if load(first.backend.column) <= margin:
                return first
        loads = {column: load(column) for column in columns}
        order = [one for one in self.order if one.backend.column in loads]
        if self.homes > 1:
            homes = [one for one in self.order[: self.homes] if one.backend.column in loads]
            homes.sort(key=lambda one: loads[one.backend.column] / weight(one))
            order[: len(homes)] = homes
        part = factor * sum(loads.values()) / sum(map(weight, order))
        least = min(loads[one.backend.column] / weight(one) for one in order)
        return next(
            one
            for one in order
            if loads[one.backend.column]
            <= max(part * weight(one), least * weight(one) + margin + _ROUNDING)
        )

    def _limits(self, settings: Affinity) -> tuple[float, int]:
        """The load factor and the load margin for this prompt.

        To compute a long prompt again costs more than to wait for a few requests: the margin is one
        more for 8 KiB that are known, and for each doubling. A prompt that nobody knows is computed
        anyway, so its home must be among the least loaded.
        """
        if self.known_bytes is None:
            return settings.load_factor, settings.load_margin
        if not self.known_bytes:
            return 0.0, min(1, settings.load_margin)
        doublings = (self.known_bytes // (8 * _LEAST_PREFIX)).bit_length()
        return settings.load_factor, settings.load_margin + doublings


def placement(
    order: Sequence[Candidate], session: Session, holders: Callable[[int], tuple[int, ...]]
) -> Placement:
    """Place a session. Without an id, the backends that served the longest known start of its
    prompt go first."""
    if not session.prefixes:
        return Placement(session, order)
    for key in session.prefixes:
        if columns := holders(key):
            first = [one for one in order if one.backend.column in columns]
            if first:
                rest = [one for one in order if one.backend.column not in columns]
                return Placement(session, first + rest, len(first), key >> 32)
    return Placement(session, order, known_bytes=0)


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
