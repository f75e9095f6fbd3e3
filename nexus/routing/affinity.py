"""Affinity: a conversation comes back to the backend that has its prompt in its cache.

Every worker and every host puts the candidates of a session into the same order, so they agree on
its home without talking to each other. The backends that have served the longest start of its
prompt go first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Literal

import msgspec
from xxhash import xxh3_64, xxh3_64_intdigest

from nexus.config.routing_records import Affinity
from nexus.routing.candidate import Candidate

Source = Literal["header", "body", "prefix"]
"""Where the session of a request is known from."""
Result = Literal["hit", "spill"]
"""Whether the session's home took the request, or another backend."""

SHORTEST_PREFIX = 512
"""To compute a shorter prompt again costs too little to look for it."""
LONGEST_PREFIX = 64 * 1024
"""Bytes of a prompt that are compared with earlier ones."""
_ROUNDING = 1e-9
_UNLIMITED = 16
"""The weight of a backend without a limit, in requests at once."""


class Session(msgspec.Struct):
    """What a request's placement depends on.

    Attributes:
        source: How the session is known.
        value: Its id, if it has one.
        scope: Sessions of different scopes never meet, whatever their ids.
        keys: Those of starts of the prompt, the longest first; empty if only its id counts.
        ends: The lengths of these starts in bytes.
    """

    source: Source
    value: bytes
    scope: str = ""
    keys: Sequence[int] = ()
    ends: tuple[int, ...] = ()
    _digest: bytes = b""

    def identify(self) -> bytes:
        """The same for all requests of the session. It is called where no start of its prompt is
        known."""
        return self.value

    @property
    def digest(self) -> bytes:
        """The same in every gateway."""
        if not self._digest:
            key = _key(self.scope)
            self._digest = blake2b(self.identify(), digest_size=16, key=key).digest()
        return self._digest

    @property
    def chance(self) -> float:
        """A number in [0, 1) of its own, so that a recovered backend gets back whole sessions."""
        return int.from_bytes(self.digest[:6], "big") / (1 << 48)


@lru_cache(maxsize=4096)
def _key(scope: str) -> bytes:
    return blake2b(scope.encode(), digest_size=32).digest()


def starts_of(
    prompt: memoryview, scope: str, model: str, seed: int
) -> tuple[list[int], tuple[int, ...]]:
    """The keys of starts of a prompt, and their lengths, the longest first.

    They end at powers of two, and half-way between the last two: 8, 16, and 24 KiB of 30. A shorter
    one says little about where the rest is cached. Keys of different scopes, models and seeds
    differ.
    """
    size = len(prompt)
    top = 1 << size.bit_length() - 1
    ends, longest_first = _ends(top, size * 2 // top)
    state, keys, at = xxh3_64(seed=_seed(scope, model, seed)), [], 0
    for end in ends:
        state.update(prompt[at:end])
        keys.append(state.intdigest())
        at = end
    keys.reverse()
    return keys, longest_first


@lru_cache(maxsize=64)
def _ends(top: int, halves: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ends of starts in a prompt that has so many halves of `top`, and the longest first."""
    ends = (top // 2, top, top * 3 // 2)[:halves]
    ends = tuple(end for end in ends if end >= SHORTEST_PREFIX)
    return ends, ends[::-1]


@lru_cache(maxsize=4096)
def _seed(scope: str, model: str, seed: int) -> int:
    return xxh3_64_intdigest(f"{scope} {model}".encode(errors="replace"), seed)


class Placement(msgspec.Struct, gc=False):
    """Where a session's requests go.

    Attributes:
        order: All candidates. They are in the session's order, its homes first, if it has an id or
            no start of its prompt is known.
        homes: Those that have its prompts, or should get them.
        known: The length of the longest known start of the prompt; if none is, 0, or None for a
            session with an id.
        longer: How many starts of the prompt are not shorter than that one.
    """

    session: Session
    order: Sequence[Candidate]
    homes: Sequence[Candidate]
    known: int | None = None
    longer: int = 0

    def is_home(self, candidate: Candidate) -> bool:
        return candidate is self.homes[0] or any(one is candidate for one in self.homes)

    def new_keys(self, *, is_home: bool) -> Sequence[int]:
        """The keys to record for the backend that gets the prompt. A home has the shorter ones."""
        keys = self.session.keys
        return keys[: self.longer] if self.longer and is_home else keys

    def within_load(
        self,
        columns: Sequence[int],
        load: Callable[[int], int],
        settings: Affinity,
        repeats: Callable[[int], bool],
    ) -> Candidate:
        """The backend in these columns that should serve the request.

        A backend may have `load_factor` times its part of all requests in flight, and always
        `load_margin` more than the least loaded one. So one always can. The first in the session's
        order is taken.

        To compute a known prompt again costs more than to wait for a few requests, so its home may
        have one more for each 512 bytes of it, up to twice `load_margin`. If the process's last
        prompt had another start, it may have one for each 2 KiB, up to four times `load_margin`: a
        short burst rarely copies a start that few requests share, and one that most of them share
        spreads. Instead of an overloaded home the least loaded backend takes it: all others have to
        compute it anyway.

        `repeats` says whether the process's last prompt had the start with this key.
        """
        factor, margin = settings.load_factor, settings.load_margin
        known, homes = self.known, self.homes
        if known:
            margin = min(1 + known // 512, 2 * margin)
        elif known == 0:
            # It is computed anyway, so its home must be one of the least loaded.
            factor, margin = 0.0, 0
        home = homes[0]
        at = home.backend.column
        if len(homes) == 1 and at in columns and load(at) <= margin:
            return home
        if known and not repeats(self.session.keys[self.longer - 1]):
            margin = max(margin, min(known // 2048, 4 * settings.load_margin))
        loads = {column: load(column) for column in columns}
        order = [one for one in self.order if one.backend.column in loads]
        part = factor * sum(loads.values()) / sum(map(weight, order))
        least = min(loads[one.backend.column] / weight(one) for one in order)

        def is_within(one: Candidate) -> bool:
            allowed = max(part * weight(one), least * weight(one) + margin + _ROUNDING)
            return loads[one.backend.column] <= allowed

        if not known or self.session.source != "prefix":
            return next(one for one in order if is_within(one))

        # Of equally loaded ones, it is the same for all prompts with this start.
        key = self.session.keys[self.longer - 1]

        def rank(one: Candidate) -> tuple[float, int]:
            column = one.backend.column
            return loads[column] / weight(one), key >> column % 48 & 0xFFFF

        homes = [one for one in homes if one.backend.column in loads]
        if homes and is_within(home := min(homes, key=rank)):
            return home
        return min(order, key=rank)


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
