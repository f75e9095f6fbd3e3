"""The last finished requests of every process: a ring of cells for each slot, with one writer.

Layout: `CELLS` cells of `CELL` bytes for each slot. A cell starts with two 64-bit integers, the
number of its record (from 1 in each slot) and the record's length; then the encoded record follows.
The number is 0 during a write. Readers read it before and after the record, so that they never use
half of one. A ring outlives its process; the slot's next lessee continues it.
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
"""Requests that a process writes at once in each interval of the server; the others wait."""
LATER = 8
"""About how many of the waiting ones are written at the end of an interval under load."""
_MOST_WITH_ROOM = CELLS // 4
"""Up to so many in an interval, all are written: a second has four, and readers read once in it."""
_QUIET_S = 1.0


class RequestRecord(msgspec.Struct, array_like=True, gc=False):
    """A finished request, with names as people know them, not label values.

    Attributes:
        ended: In Unix seconds.
        order: The end on the host's monotonic clock, so that steps of the wall clock change no
            order.
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
            ended=time.time() - (time.monotonic() - outcome.ended),  # `order` in Unix time
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


class HistoryTable:
    """All rings, for reading; `ring()` is for the process that writes one."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the table at `path`; None makes one private ring."""
        self._fd = -1
        self._own = mmap.mmap(-1, _RING) if path is None else None
        if path is not None:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def ring(self, slot: int) -> Ring:
        """The ring of `slot`, which only its lessee may write. Raises OSError.

        This reserves the ring's space, so that a full file system causes OSError here instead of
        SIGBUS at a later store.
        """
        mapped = self._own
        if mapped is None:
            os.posix_fallocate(self._fd, slot * _RING, _RING)
            mapped = mmap.mmap(self._fd, _RING, offset=slot * _RING)
        return Ring(memoryview(mapped))

    def newer_than(self, seen: dict[int, int], slots: Iterable[int]) -> list[RequestRecord]:
        """The records of these slots that are newer than `seen`, in no order; updates `seen`."""
        records: list[RequestRecord] = []
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
                    continue  # it was overwritten meanwhile, and may be a mix of two
                with contextlib.suppress(msgspec.DecodeError):
                    records.append(_decode(content[at + _HEAD : at + _HEAD + length]))
            seen[slot] = max(number for number, _, _ in fresh)
        return records

    def latest(self, slots: Iterable[int], *, limit: int) -> list[RequestRecord]:
        """The last finished requests, newest first."""
        records = self.newer_than({}, slots)
        records.sort(key=attrgetter("order"), reverse=True)
        return records[:limit]

    def _read(self, slot: int) -> bytes:
        # Read, not mapped: reading a hole through a map would allocate space, or fail without any.
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
        """Overwrite the oldest record; a record that is too long for a cell is shortened."""
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


class History:
    """Records the finished requests of one process. Safe from any greenlet or thread.

    Each request is written at once. With `batch_with`, those of a busy process wait for the end of
    an interval. Then all failures that fit into the ring are written, and a sample of successes.
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
        """Batch under load. `later` calls its argument once, after a quarter of a second."""
        self._later = later

    def record(self, outcome: Outcome) -> None:
        """Record a request that ends now; a busy process records only a sample of its successes."""
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
                    self._each = 1  # the last rate is outdated
                self._later(self._end_interval)
            self._at_once -= 1

    def flush(self) -> None:
        """Write the waiting records, failures last: the ring keeps the last ones longest."""
        with self._lock:
            for held in (self._held, self._failed):
                while held:
                    self._ring.write(held.popleft())

    def _end_interval(self) -> None:
        # About as many requests will end in the next interval.
        self._each = 1 if self._ended <= _MOST_WITH_ROOM else self._ended // LATER
        self._ended, self._over_at = 0, time.monotonic()
        self._at_once = AT_ONCE
        self.flush()


def _heads(content: bytes | memoryview) -> Iterable[tuple[int, tuple[int, int]]]:
    """For each cell its offset, and number and length of its record."""
    cells, step = memoryview(content).cast("q"), CELL >> 3
    return zip(
        range(0, len(content), CELL),
        zip(cells[::step].tolist(), cells[1::step].tolist(), strict=True),
        strict=True,
    )


def _shortened(record: RequestRecord) -> RequestRecord:
    """The record with short names and only the first attempts, so that it always fits a cell."""
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
