"""What the workers of a host have learnt of each backend from its answers: one record for each, which any may write.

A record that says nothing special costs its reader one look at one cell. Changes of a circuit's state are made under a
lock on a byte of the same file, so that each is made, and counted, once. The right to be the half-open probe is a
lease: it ends by itself, should its holder die or take long.

Times are nanoseconds on the host's monotonic clock.
"""

from __future__ import annotations

import mmap
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

State = Literal["closed", "half_open", "open"]
STATES: tuple[State, ...] = ("closed", "half_open", "open")
"""In the order of their numbers in `nexus_backend_circuit_state`."""

(
    _NOTED,
    _OPEN_UNTIL,
    _TRIPS,
    _BUSY_UNTIL,
    _RECOVERED,
    _FAILED,
    _MODELS_UNTIL,
    _STREAM_USAGE,
    _STREAK,
) = range(9)
_LEASE, _PROBE_WANTED = range(9, 11)
_RECORD = 16
_TURNS = COLUMNS * _RECORD
_TURN_CELLS = 4096  # models that share one would take turns with each other
_PATIENCE_S, _IMPATIENT_S = 0.2, 5.0
_MODELS = _TURNS + _TURN_CELLS
_MODEL_CELLS = (
    4096  # pairs: whose it is, and until when that model is busy; a later one takes the pair over
)
_SIZE = (_MODELS + 2 * _MODEL_CELLS) * 8
_CHANGING, _TURNING = COLUMNS, 2 * COLUMNS  # lock bytes


@dataclass(frozen=True, slots=True)
class Circuit:
    """A record as it stands. `open_until` is 0 while the circuit is closed, `trips` how often it opened in a row;
    `models_until` is the latest time until which any of the backend's models is busy."""

    open_until: int = 0
    consecutive_opens: int = 0
    busy_until: int = 0
    recovered: int = 0
    failed: int = 0
    models_until: int = 0

    def state(self, now_ns: int) -> State:
        if not self.open_until:
            return "closed"
        return "open" if now_ns < self.open_until else "half_open"


class CircuitTable:
    """All records. Safe from any process, greenlet or thread."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the table at `path`; None gives one that no other process sees."""
        self._locks: LockFile | None = None
        if path is None:
            self._map = mmap.mmap(-1, _SIZE)
        else:
            self._locks = LockFile(path)
            fd = self._locks.fileno()
            if os.fstat(fd).st_size < _SIZE:
                os.posix_fallocate(fd, 0, _SIZE)
            self._map = mmap.mmap(fd, _SIZE)
        self._cells = memoryview(self._map).cast("q")
        self.dirty = self._cells[: COLUMNS * _RECORD : _RECORD]
        """By column, whether there is anything to know of a backend; nearly always there is not."""
        # The locks are between processes; within one, its threads and greenlets need these.
        self._mine = threading.Lock()
        self._impatient_until = 0.0

    def read(self, column: int) -> Circuit:
        base = column * _RECORD
        return Circuit(*self._cells[base + 1 : base + 7])

    def state(self, column: int, now_ns: int) -> State:
        return self.read(column).state(now_ns) if self.dirty[column] else "closed"

    def _write(self, column: int, cell: int, value: int) -> None:
        # The field first, then the note of it: a reader that sees the note sees the field.
        self._cells[column * _RECORD + cell] = value
        self._cells[column * _RECORD] = 1

    def clear_if_expired(self, column: int, before_ns: int) -> None:
        """Take the note away where all that it says was over before then."""
        base = column * _RECORD
        if self._over(column, before_ns):
            self._cells[base] = 0
            if not self._over(column, before_ns):  # another process wrote meanwhile
                self._cells[base] = 1

    def _over(self, column: int, before_ns: int) -> bool:
        found = self.read(column)
        last = max(found.busy_until, found.models_until, found.recovered, found.failed)
        return not found.open_until and last < before_ns

    def record_failure(self, column: int, now_ns: int) -> int:
        """Gives how many failures there were in a row; one may be missed where two processes see one at once."""
        self._cells[column * _RECORD + _STREAK] += 1
        self._write(column, _FAILED, now_ns)
        return self._cells[column * _RECORD + _STREAK]

    def record_success(self, column: int) -> None:
        if self._cells[column * _RECORD + _STREAK]:
            self._cells[column * _RECORD + _STREAK] = 0

    def record_busy(self, column: int, until_ns: int) -> None:
        if until_ns > self._cells[column * _RECORD + _BUSY_UNTIL]:
            self._write(column, _BUSY_UNTIL, until_ns)

    def record_model_busy(self, column: int, model: str, until_ns: int) -> None:
        """As `note_busy`, for one model of the backend."""
        at, whose = _model_pair(column, model)
        if self._cells[at] != whose or self._cells[at + 1] < until_ns:
            self._cells[at + 1], self._cells[at] = until_ns, whose
            if until_ns > self._cells[column * _RECORD + _MODELS_UNTIL]:
                self._write(column, _MODELS_UNTIL, until_ns)

    def model_busy_until(self, column: int, model: str) -> int:
        at, whose = _model_pair(column, model)
        return self._cells[at + 1] if self._cells[at] == whose else 0

    def request_health_probe(self, column: int) -> None:
        """Have the health process probe the backend at once: what it answered does not fit what it told."""
        self._cells[column * _RECORD + _PROBE_WANTED] = 1

    def pop_probe_request(self, column: int) -> bool:
        """Whether a probe was wanted since this was last asked."""
        cell = column * _RECORD + _PROBE_WANTED
        wanted, self._cells[cell] = self._cells[cell], 0
        return bool(wanted)

    def open(self, column: int, *, until_ns: int, consecutive_opens: int) -> bool:
        """Open a circuit that is closed; False where another process has done so, or is about to."""
        with self._changing(column) as free:
            if not free or self.read(column).open_until:
                return False
            self._write(column, _TRIPS, consecutive_opens)
            self._write(column, _OPEN_UNTIL, until_ns)
            return True

    def keep_open(self, column: int, *, until_ns: int, consecutive_opens: int) -> None:
        """Keep it open after a half-open probe that failed."""
        self._write(column, _TRIPS, consecutive_opens)
        self._write(column, _OPEN_UNTIL, until_ns)

    def allow_trial(self, column: int, now_ns: int) -> None:
        """Let a request try at once, whatever time was set: something else speaks for the backend."""
        if self._cells[column * _RECORD + _OPEN_UNTIL] > now_ns:
            self._write(column, _OPEN_UNTIL, now_ns)

    def close_untried(self, column: int, now_ns: int, *, after_ns: int) -> None:
        """Close it, after a good health probe, if it has been half open for so long and no request tries the backend:
        one that does says more, since a backend whose requests hang may have good health probes."""
        base = column * _RECORD
        open_until, tried = self._cells[base + _OPEN_UNTIL], self._cells[base + _LEASE]
        if open_until and not tried and now_ns >= open_until + after_ns:
            self.close_circuit(column, now_ns)

    def close_circuit(self, column: int, now_ns: int) -> None:
        """Close it: the backend is well again."""
        self._cells[column * _RECORD + _STREAK] = self._cells[column * _RECORD + _LEASE] = 0
        self._write(column, _RECOVERED, now_ns)
        self._write(column, _OPEN_UNTIL, 0)

    def stream_usage(self, column: int) -> bool | None:
        """Whether the backend lets itself be asked for the usage of a stream; None while nobody has."""
        told = self._cells[column * _RECORD + _STREAM_USAGE]
        return None if told == 0 else told > 0

    def record_stream_usage(self, column: int, *, supported: bool) -> None:
        self._cells[column * _RECORD + _STREAM_USAGE] = 1 if supported else -1

    def reset(self, column: int, now_ns: int) -> None:
        """Forget everything: the column goes to another backend, for which nothing counts that was before."""
        base = column * _RECORD
        self._cells[base : base + _RECORD] = memoryview(bytes(_RECORD * 8)).cast("q")
        self._cells[base + _RECOVERED] = now_ns

    def acquire_probe_lease(self, column: int, now_ns: int, until_ns: int) -> bool:
        """Take the right to be the half-open probe until then. False if another request has it, or the circuit is not
        half open (any more)."""
        with self._changing(column) as free:
            cell = column * _RECORD + _LEASE
            if not free or self._cells[cell] > now_ns or self.state(column, now_ns) != "half_open":
                return False
            self._cells[cell] = until_ns
            return True

    def release_probe_lease(self, column: int, until_ns: int) -> None:
        """Give the right back; one that has passed to another meanwhile stays there."""
        cell = column * _RECORD + _LEASE
        if self._cells[cell] == until_ns:
            self._cells[cell] = 0

    @contextmanager
    def _changing(self, column: int) -> Iterator[bool]:
        """Nobody else changes the record meanwhile; gives False, at once, where somebody does."""
        byte = _CHANGING + column
        with self._mine:
            free = self._locks is None or self._locks.acquire(byte)
            try:
                yield free
            finally:
                if free and self._locks is not None:
                    self._locks.release(byte)

    def next_cursor(self, key: int) -> int:
        """A number that goes up by one at each call with the same `key`, whichever process calls.

        Two may get the same number where a process is stopped just while it counts: nobody waits for it.
        """
        at = key % _TURN_CELLS
        with self._mine:
            locks = self._locks
            held = locks is not None and self._take_soon(locks, _TURNING + at)
            turn = self._cells[_TURNS + at] = self._cells[_TURNS + at] + 1
            if locks is not None and held:
                locks.release(_TURNING + at)
        return turn

    def _take_soon(self, locks: LockFile, byte: int) -> bool:
        """Take a lock that others hold for microseconds. This blocks the thread, so not for long: its holder may have
        been stopped, and then nobody waits for it again for a while."""
        if locks.acquire(byte):
            return True
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and time.monotonic() > self._impatient_until:
            if locks.acquire(byte):
                return True
            os.sched_yield()
        self._impatient_until = deadline + _IMPATIENT_S
        return False

    def release_locks(self) -> None:
        """Give back what this process holds of it. It can still be read."""
        if self._locks is not None:
            self._locks.close()


def _model_pair(column: int, model: str) -> tuple[int, int]:
    """Where the pair of cells of a backend's model is, and what says that it is this one's."""
    digest = crc32(model.encode(errors="replace"))
    return _MODELS + 2 * (
        (digest ^ column * 0x9E37) % _MODEL_CELLS
    ), 1 << 62 | column << 32 | digest
