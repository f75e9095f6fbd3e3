"""The requests that ended last, of every process: a ring of cells for each slot, one writer for
each ring.

Layout: `CELLS` cells of `CELL` bytes for each slot. A cell begins with two 64-bit integers: the
number of what it holds, counted from 1 in each slot, and its length; then the encoded record. The
number is 0 while a cell is written, and is read before and after: a reader takes no half of a
record. A ring outlives its process; the slot's next lessee goes on in it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from _thread import RLock
from collections import deque
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path

import msgspec

from nexus.fleet.outcome import AttemptRecord, Outcome, milliseconds

CELLS = 128
CELL = 2048
_HEAD = 16
_ROOM = CELL - _HEAD
_RING = CELLS * CELL
_MOST_ATTEMPTS = 6
LONGEST_NAME = 200
"""Characters of a model's name that are kept."""
AT_ONCE = 16
"""So many requests of a process are shown at once within the time that its server sets for the
others."""
LATER = 8
"""About so many of the others are shown when that time is over, where they are more than a ring
has room for."""
_MOST_WITH_ROOM = CELLS // 4
"""So many in such a time, of which a second has four, are all shown: readers look once a second."""
_QUIET_S = 1.0


class RequestRecord(msgspec.Struct, array_like=True, gc=False):
    """A finished request, with names as people know them, not label values.

    Attributes:
        ended: In Unix seconds.
        order: The end on the host's monotonic clock: no step of the wall clock changes what came
            first.
    """

    id: str
    ended: float
    endpoint: str
    requested_model: str
    model: str
    backend: str | None
    status: int
    duration_ms: float
    error_type: str | None = None
    fault: str | None = None
    reason: str | None = None
    stream: bool = False
    ttft_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    order: float = 0.0

    @classmethod
    def of(cls, outcome: Outcome) -> RequestRecord:
        """The record of a request that ends now."""
        fault, stream, attempts = outcome.fault, outcome.stream, tuple(outcome.failed_attempts)
        fault_name = fault.code if fault is not None else None
        model = outcome.model[:LONGEST_NAME]
        if outcome.backend is not None and outcome.last_attempt_s is not None:
            ms = milliseconds(outcome.last_attempt_s)
            attempts += (AttemptRecord(outcome.backend, model, fault_name or "success", ms),)
        return cls(
            id=outcome.request_id,
            ended=time.time()
            - (time.monotonic() - outcome.ended),  # what `order` says, on the wall
            endpoint=outcome.endpoint,
            requested_model=outcome.requested_model[:LONGEST_NAME],
            model=model,
            backend=outcome.backend,
            status=outcome.status,
            duration_ms=milliseconds(outcome.duration_s),
            error_type=fault.error_type if fault is not None else None,
            fault=fault_name,
            reason=outcome.reason,
            stream=stream is not None,
            ttft_ms=milliseconds(stream.ttft_s)
            if stream is not None and stream.ttft_s is not None
            else None,
            prompt_tokens=outcome.prompt_tokens,
            completion_tokens=outcome.completion_tokens,
            attempts=attempts,
            order=outcome.ended,
        )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RequestRecord).decode


class RequestLogTable:
    """All rings, for reading; `ring()` is for the process that writes one."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the table at `path`; None gives one of a single ring, which no other
        process sees."""
        self._fd = -1
        self._own = mmap.mmap(-1, _RING) if path is None else None
        if path is not None:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def ring(self, slot: int) -> Ring:
        """The ring of `slot`, to be written by its one lessee. Raises OSError where there is no
        space for it.

        Its space is reserved now: a full file system then fails here, and not as a SIGBUS at a
        later store.
        """
        mapped = self._own
        if mapped is None:
            os.posix_fallocate(self._fd, slot * _RING, _RING)
            mapped = mmap.mmap(self._fd, _RING, offset=slot * _RING)
        return Ring(memoryview(mapped))

    def newer_than(self, seen: dict[int, int], slots: Iterable[int]) -> list[RequestRecord]:
        """What these slots' rings hold that was not seen yet, in no particular order; `seen` is
        brought up to date."""
        found: list[RequestRecord] = []
        for slot in slots:
            last, content = seen.get(slot, 0), self._read(slot)
            fresh = [
                (number, at, length) for at, (number, length) in _heads(content) if number > last
            ]
            if not fresh:
                continue
            after = dict(_heads(self._read(slot)))
            for number, at, length in fresh:
                if after[at][0] != number:
                    continue  # it was written over meanwhile, and may be half of each
                with contextlib.suppress(msgspec.DecodeError):
                    found.append(_decode(content[at + _HEAD : at + _HEAD + length]))
            seen[slot] = max(number for number, _, _ in fresh)
        return found

    def latest(self, slots: Iterable[int], *, limit: int) -> list[RequestRecord]:
        """The requests that ended last, newest first."""
        found = self.newer_than({}, slots)
        found.sort(key=attrgetter("order"), reverse=True)
        return found[:limit]

    def _read(self, slot: int) -> bytes:
        # Read, not mapped: a look at a hole through a map would take up space, or fail where there
        # is none.
        return (
            bytes(self._own) if self._own is not None else os.pread(self._fd, _RING, slot * _RING)
        )

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Ring:
    """One process's ring."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._cells = view.cast("q")
        self._number = max(number for _, (number, _) in _heads(view))

    def write(self, record: RequestRecord) -> None:
        """Put a record over the oldest; what is too long for a cell is cut."""
        content = _encode(record)
        if len(content) > _ROOM:
            content = _encode(_shortened(record))
            if len(content) > _ROOM:
                return
        number = self._number = self._number + 1
        at = number % CELLS * CELL
        cell = at >> 3
        self._cells[cell] = 0
        self._view[at + _HEAD : at + _HEAD + len(content)] = content
        self._cells[cell + 1] = len(content)
        self._cells[cell] = number


class RequestLog:
    """Writes the requests of one process that end. Safe from any greenlet or thread.

    Each is written at once. With `batch_with`, those of a busy process wait for the end of a short
    time, and are all that failed, as far as a ring has room for them, and some of the others: of
    thousands in a second nobody could see each anyway.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._lock = RLock()
        self._later: Callable[[Callable[[], None]], object] | None = None
        self._at_once = AT_ONCE
        self._ended, self._each, self._over_at = 0, 1, 0.0
        self._held: deque[RequestRecord] = deque(maxlen=CELLS)
        self._failed: deque[RequestRecord] = deque(maxlen=CELLS)

    def batch_with(self, later: Callable[[Callable[[], None]], object]) -> None:
        """`later` calls what it is given when the time is over, once: a quarter of a second."""
        self._later = later

    def record(self, outcome: Outcome) -> None:
        """Add a request that ends now; of a busy process's successes only some."""
        self._ended += 1
        if outcome.fault is not None or self._at_once > 0 or self._ended % self._each == 0:
            self.add(RequestRecord.of(outcome))

    def add(self, record: RequestRecord) -> None:
        if not self._at_once:
            (self._held if record.fault is None else self._failed).append(record)
            return
        with self._lock:
            self._ring.write(record)
        if self._later is not None:
            if self._at_once == AT_ONCE:
                if record.order - self._over_at > _QUIET_S:
                    self._each = 1  # how busy it was says nothing any more
                self._later(self._time_is_over)
            self._at_once -= 1

    def flush(self) -> None:
        """Write what is held, those that failed last: what is written last stays longest."""
        with self._lock:
            for held in (self._held, self._failed):
                while held:
                    self._ring.write(held.popleft())

    def _time_is_over(self) -> None:
        # As many as ended in this time are likely to end in the next.
        self._each = 1 if self._ended <= _MOST_WITH_ROOM else self._ended // LATER
        self._ended, self._over_at = 0, time.monotonic()
        self._at_once = AT_ONCE
        self.flush()


def _heads(content: bytes | memoryview) -> Iterable[tuple[int, tuple[int, int]]]:
    """Where each cell is, with the number and the length of what it holds."""
    cells, step = memoryview(content).cast("q"), CELL >> 3
    return zip(
        range(0, len(content), CELL),
        zip(cells[::step].tolist(), cells[1::step].tolist(), strict=True),
        strict=True,
    )


def _shortened(record: RequestRecord) -> RequestRecord:
    """With names cut and the first attempts only, so that it fits a cell whatever they were."""
    attempts = tuple(
        AttemptRecord(
            backend=one.backend[:24], model=one.model[:24], outcome=one.outcome, ms=one.ms
        )
        for one in record.attempts[:_MOST_ATTEMPTS]
    )
    return msgspec.structs.replace(
        record,
        id=record.id[:64],
        requested_model=record.requested_model[:24],
        model=record.model[:24],
        backend=record.backend[:24] if record.backend else None,
        attempts=attempts,
    )
