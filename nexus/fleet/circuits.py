"""What requests showed about each backend: a record for each in shared memory, for all processes.

Reading a clean record costs one memory read (`CircuitTable.dirty`). A circuit is opened under a
lock on a byte of the same file, so each opening happens, and is counted, once. The right to be the
half-open probe is a lease: it ends by itself if its holder dies or is slow. `circuit_breaker.py`
decides what is stored here.

Times are nanoseconds on the host's monotonic clock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zlib import crc32

from nexus.fleet.load_table import COLUMNS
from nexus.fleet.locks import LockFile
from nexus.fleet.mapping import map_descriptor

State = Literal["closed", "half_open", "open"]
STATES: tuple[State, ...] = ("closed", "half_open", "open")
"""In the order of their numbers in `nexus_backend_circuit_state`."""

# The cells of a record; those from _OPEN_UNTIL to _PROBE_LEASE are the fields of `Circuit`, in its
# order.
_DIRTY, _OPEN_UNTIL, _CONSECUTIVE_OPENS, _BUSY_UNTIL, _RECOVERED, _FAILED = range(6)
_MODELS_UNTIL, _STREAM_USAGE, _FAILURES_IN_A_ROW, _PROBE_LEASE, _PROBE_REQUESTED = range(6, 11)
_RECORD = 16
_CURSORS = COLUMNS * _RECORD
_CURSOR_CELLS = 4096  # models that hash to the same cell share a round-robin cursor
_MODELS = _CURSORS + _CURSOR_CELLS
_MODEL_CELLS = 4096  # pairs of (key, busy until); a model that hashes to a taken pair replaces it
_SIZE = (_MODELS + 2 * _MODEL_CELLS) * 8
_RECORD_LOCKS, _CURSOR_LOCKS = COLUMNS, 2 * COLUMNS  # first lock bytes
_LOCK_TIMEOUT_S, _NO_WAITING_S = 0.2, 5.0


@dataclass(frozen=True, slots=True)
class Circuit:
    """A copy of one record.

    Attributes:
        open_until: When an open circuit becomes half open; 0 while it is closed.
        consecutive_opens: How often it opened without recovering for long.
        busy_until: Until when the backend asked not to be sent requests.
        recovered: When the circuit last closed.
        failed: When a request last failed.
        models_until: The latest time until which any of the backend's models is busy.
        stream_usage: See `CircuitTable.stream_usage`.
        failures_in_a_row: Failures since the last success.
        probe_lease: When the lease of the half-open probe ends; 0 if no request holds one.
    """

    open_until: int = 0
    consecutive_opens: int = 0
    busy_until: int = 0
    recovered: int = 0
    failed: int = 0
    models_until: int = 0
    stream_usage: int = 0
    failures_in_a_row: int = 0
    probe_lease: int = 0

    def state(self, now_ns: int) -> State:
        if not self.open_until:
            return "closed"
        return "open" if now_ns < self.open_until else "half_open"


class CircuitTable:
    """All records. Safe from any process, greenlet or thread."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the table at `path`; None makes one that no other process sees."""
        self._locks = None if path is None else LockFile(path)
        self._map = map_descriptor(self._locks.fileno() if self._locks else None, _SIZE)
        self._cells = memoryview(self._map).cast("q")
        self.dirty = self._cells[: COLUMNS * _RECORD : _RECORD]
        """By column: whether the record says anything. It rarely does."""
        # File locks exclude other processes; this one excludes threads and greenlets of this
        # process.
        self._process_lock = threading.Lock()
        self._no_waiting_until = 0.0

    def read(self, column: int) -> Circuit:
        base = column * _RECORD
        return Circuit(*self._cells[base + _OPEN_UNTIL : base + _PROBE_LEASE + 1])

    def state(self, column: int, now_ns: int) -> State:
        return self.read(column).state(now_ns) if self.dirty[column] else "closed"

    def _write(self, column: int, cell: int, value: int) -> None:
        # The field before the dirty flag: a reader that sees the flag sees the field.
        self._cells[column * _RECORD + cell] = value
        self._cells[column * _RECORD] = 1

    def clear_if_expired(self, column: int, before_ns: int) -> None:
        """Clear the dirty flag if everything in the record expired before `before_ns`."""
        base = column * _RECORD
        if self._expired(column, before_ns):
            self._cells[base] = 0
            if not self._expired(column, before_ns):  # another process wrote meanwhile
                self._cells[base] = 1

    def _expired(self, column: int, before_ns: int) -> bool:
        circuit = self.read(column)
        last = max(circuit.busy_until, circuit.models_until, circuit.recovered, circuit.failed)
        return not circuit.open_until and last < before_ns

    def record_failure(self, column: int, now_ns: int) -> None:
        """Record a failed request. One may be missed in `failures_in_a_row` if two processes
        record at once."""
        self._cells[column * _RECORD + _FAILURES_IN_A_ROW] += 1
        self._write(column, _FAILED, now_ns)

    def record_success(self, column: int) -> None:
        if self._cells[column * _RECORD + _FAILURES_IN_A_ROW]:
            self._cells[column * _RECORD + _FAILURES_IN_A_ROW] = 0

    def record_busy(self, column: int, until_ns: int) -> None:
        if until_ns > self._cells[column * _RECORD + _BUSY_UNTIL]:
            self._write(column, _BUSY_UNTIL, until_ns)

    def record_model_busy(self, column: int, model: str, until_ns: int) -> None:
        """As `record_busy`, for one model of the backend."""
        at, key = _model_pair(column, model)
        if self._cells[at] != key or self._cells[at + 1] < until_ns:
            self._cells[at + 1], self._cells[at] = until_ns, key
            if until_ns > self._cells[column * _RECORD + _MODELS_UNTIL]:
                self._write(column, _MODELS_UNTIL, until_ns)

    def model_busy_until(self, column: int, model: str) -> int:
        at, key = _model_pair(column, model)
        return self._cells[at + 1] if self._cells[at] == key else 0

    def request_health_probe(self, column: int) -> None:
        """Ask the health process to probe the backend now: a response contradicts its last
        probe."""
        self._cells[column * _RECORD + _PROBE_REQUESTED] = 1

    def pop_probe_request(self, column: int) -> bool:
        """Return whether a probe was requested since the last call."""
        cell = column * _RECORD + _PROBE_REQUESTED
        requested, self._cells[cell] = self._cells[cell], 0
        return bool(requested)

    def store(self, column: int, before: Circuit, after: Circuit) -> bool:
        """Write what a transition changed in the record that was read as `before`.

        Returns False if the transition opens the circuit and another process opened it first, or is
        about to.
        """
        if not before.open_until and after.open_until:
            with self._record_lock(column) as acquired:
                if not acquired or self.read(column).open_until:
                    return False
                self._store(column, before, after)
        else:
            self._store(column, before, after)
        return True

    def _store(self, column: int, before: Circuit, after: Circuit) -> None:
        base = column * _RECORD
        if not after.open_until:
            self._cells[base + _FAILURES_IN_A_ROW] = self._cells[base + _PROBE_LEASE] = 0
        if after.consecutive_opens != before.consecutive_opens:
            self._write(column, _CONSECUTIVE_OPENS, after.consecutive_opens)
        if after.recovered != before.recovered:
            self._write(column, _RECOVERED, after.recovered)
        # The state last: a reader that sees it sees the rest.
        self._write(column, _OPEN_UNTIL, after.open_until)

    def stream_usage(self, column: int) -> bool | None:
        """Return whether the backend accepts `stream_options.include_usage`; None if nobody has
        tried."""
        value = self._cells[column * _RECORD + _STREAM_USAGE]
        return None if value == 0 else value > 0

    def record_stream_usage(self, column: int, *, supported: bool) -> None:
        self._cells[column * _RECORD + _STREAM_USAGE] = 1 if supported else -1

    def reset(self, column: int, now_ns: int) -> None:
        """Clear the record, because the column is assigned to another backend."""
        base = column * _RECORD
        self._cells[base : base + _RECORD] = memoryview(bytes(_RECORD * 8)).cast("q")
        self._cells[base + _RECOVERED] = now_ns

    def acquire_probe_lease(self, column: int, now_ns: int, until_ns: int) -> bool:
        """Acquire the right to be the half-open probe until `until_ns`.

        Returns False if another request holds it, or if the circuit is not half open.
        """
        with self._record_lock(column) as acquired:
            cell = column * _RECORD + _PROBE_LEASE
            if not acquired or self._cells[cell] > now_ns:
                return False
            if self.state(column, now_ns) != "half_open":
                return False
            self._cells[cell] = until_ns
            return True

    def release_probe_lease(self, column: int, until_ns: int) -> None:
        """Release the lease that ends at `until_ns`, unless another request has acquired one
        since."""
        cell = column * _RECORD + _PROBE_LEASE
        if self._cells[cell] == until_ns:
            self._cells[cell] = 0

    @contextmanager
    def _record_lock(self, column: int) -> Iterator[bool]:
        """Exclude other writers of a record; yields False, without waiting, if there is one."""
        byte = _RECORD_LOCKS + column
        with self._process_lock:
            acquired = self._locks is None or self._locks.acquire(byte)
            try:
                yield acquired
            finally:
                if acquired and self._locks is not None:
                    self._locks.release(byte)

    def next_cursor(self, key: int) -> int:
        """Advance the round-robin cursor of `key`, which all processes share, and return it.

        Two callers may get the same number if a process is stopped while it counts, because nobody
        waits for it.
        """
        at = key % _CURSOR_CELLS
        with self._process_lock:
            locks = self._locks
            locked = locks is not None and self._lock_soon(locks, _CURSOR_LOCKS + at)
            cursor = self._cells[_CURSORS + at] = self._cells[_CURSORS + at] + 1
            if locks is not None and locked:
                locks.release(_CURSOR_LOCKS + at)
        return cursor

    def _lock_soon(self, locks: LockFile, byte: int) -> bool:
        """Acquire a lock that others hold for microseconds.

        Waiting blocks the thread, so it is short. After one timeout nobody waits for a while: the
        holder may have been stopped.
        """
        if locks.acquire(byte):
            return True
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while time.monotonic() < deadline and time.monotonic() > self._no_waiting_until:
            if locks.acquire(byte):
                return True
            os.sched_yield()
        self._no_waiting_until = deadline + _NO_WAITING_S
        return False

    def release_locks(self) -> None:
        """Release all locks that this process holds. The table can still be read."""
        if self._locks is not None:
            self._locks.close()


def _model_pair(column: int, model: str) -> tuple[int, int]:
    """Return the first cell of a model's pair, and the key that marks the pair as this model's."""
    digest = crc32(model.encode(errors="replace"))
    first = _MODELS + 2 * ((digest ^ column * 0x9E37) % _MODEL_CELLS)
    return first, 1 << 62 | column << 32 | digest
