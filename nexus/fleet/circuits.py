"""What the workers of a host have learnt of each backend from its answers: one record for each, which any may write.

A record that says nothing special costs its reader one look at one cell. Changes of a circuit's state are made under a
lock on a byte of the same file, so that each is made, and counted, once; the one request that tries a backend again is
a lock too, which the kernel gives back should its process die.

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

from nexus.fleet.load import COLUMNS
from nexus.fleet.locks import LockFile

State = Literal["closed", "half_open", "open"]
STATES: tuple[State, ...] = ("closed", "half_open", "open")
"""In the order of their numbers in `nexus_backend_circuit_state`."""

_NOTED, _OPEN_UNTIL, _TRIPS, _BUSY_UNTIL, _RECOVERED, _FAILED, _STREAM_USAGE, _STREAK = range(8)
_RECORD = 8
_TURNS = COLUMNS * _RECORD
_TURN_CELLS = 4096  # models that share one would take turns with each other
_PATIENCE_S, _IMPATIENT_S = 0.2, 5.0
_SIZE = (_TURNS + _TURN_CELLS) * 8
_CHANGING, _TURNING = COLUMNS, 2 * COLUMNS  # lock bytes; those below are for trials


@dataclass(frozen=True, slots=True)
class Circuit:
    """A record as it stands. `open_until` is 0 while the circuit is closed, `trips` how often it opened in a row."""

    open_until: int = 0
    trips: int = 0
    busy_until: int = 0
    recovered: int = 0
    failed: int = 0

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
        self.noted = self._cells[: COLUMNS * _RECORD : _RECORD]
        """By column, whether there is anything to know of a backend; nearly always there is not."""
        # The locks are between processes; within one, its threads and greenlets need these.
        self._mine = threading.Lock()
        self._trials: set[int] = set()
        self._impatient_until = 0.0

    def read(self, column: int) -> Circuit:
        base = column * _RECORD
        return Circuit(*self._cells[base + 1 : base + 6])

    def state(self, column: int, now_ns: int) -> State:
        return self.read(column).state(now_ns) if self.noted[column] else "closed"

    def _write(self, column: int, cell: int, value: int) -> None:
        # The field first, then the note of it: a reader that sees the note sees the field.
        self._cells[column * _RECORD + cell] = value
        self._cells[column * _RECORD] = 1

    def forget_if(self, column: int, before_ns: int) -> None:
        """Take the note away where all that it says was over before then."""
        base = column * _RECORD
        if self._over(column, before_ns):
            self._cells[base] = 0
            if not self._over(column, before_ns):  # another process wrote meanwhile
                self._cells[base] = 1

    def _over(self, column: int, before_ns: int) -> bool:
        found = self.read(column)
        return not found.open_until and max(found.busy_until, found.recovered, found.failed) < before_ns

    def note_failure(self, column: int, now_ns: int) -> int:
        """Gives how many failures there were in a row; one may be missed where two processes see one at once."""
        self._cells[column * _RECORD + _STREAK] += 1
        self._write(column, _FAILED, now_ns)
        return self._cells[column * _RECORD + _STREAK]

    def note_success(self, column: int) -> None:
        if self._cells[column * _RECORD + _STREAK]:
            self._cells[column * _RECORD + _STREAK] = 0

    def note_busy(self, column: int, until_ns: int) -> None:
        if until_ns > self._cells[column * _RECORD + _BUSY_UNTIL]:
            self._write(column, _BUSY_UNTIL, until_ns)

    def open(self, column: int, *, until_ns: int, trips: int) -> bool:
        """Open a circuit that is closed; False where another process has done so, or is about to."""
        with self._changing(column) as free:
            if not free or self.read(column).open_until:
                return False
            self._write(column, _TRIPS, trips)
            self._write(column, _OPEN_UNTIL, until_ns)
            return True

    def keep_open(self, column: int, *, until_ns: int, trips: int) -> None:
        """Keep it open after a trial that failed; for the holder of the trial."""
        self._write(column, _TRIPS, trips)
        self._write(column, _OPEN_UNTIL, until_ns)

    def allow_trial(self, column: int, now_ns: int) -> None:
        """Let a request try at once, whatever time was set: something else speaks for the backend."""
        if self._cells[column * _RECORD + _OPEN_UNTIL] > now_ns:
            self._write(column, _OPEN_UNTIL, now_ns)

    def close_circuit(self, column: int, now_ns: int) -> None:
        """Close it after a trial that went well; for the holder of the trial."""
        self._cells[column * _RECORD + _STREAK] = 0
        self._write(column, _RECOVERED, now_ns)
        self._write(column, _OPEN_UNTIL, 0)

    def stream_usage(self, column: int) -> bool | None:
        """Whether the backend lets itself be asked for the usage of a stream; None while nobody has."""
        told = self._cells[column * _RECORD + _STREAM_USAGE]
        return None if told == 0 else told > 0

    def note_stream_usage(self, column: int, *, taken: bool) -> None:
        self._cells[column * _RECORD + _STREAM_USAGE] = 1 if taken else -1

    def reset(self, column: int, now_ns: int) -> None:
        """Forget everything: the column goes to another backend, for which nothing counts that was before."""
        base = column * _RECORD
        self._cells[base : base + _RECORD] = memoryview(bytes(_RECORD * 8)).cast("q")
        self._cells[base + _RECOVERED] = now_ns

    def begin_trial(self, column: int) -> bool:
        """Take the right to be the one request that tries the backend; False where another has it."""
        with self._mine:
            if column in self._trials or (self._locks is not None and not self._locks.take(column)):
                return False
            self._trials.add(column)
            return True

    def end_trial(self, column: int) -> None:
        with self._mine:
            self._trials.discard(column)
            if self._locks is not None:
                self._locks.release(column)

    @contextmanager
    def _changing(self, column: int) -> Iterator[bool]:
        """Nobody else changes the record meanwhile; gives False, at once, where somebody does."""
        byte = _CHANGING + column
        with self._mine:
            free = self._locks is None or self._locks.take(byte)
            try:
                yield free
            finally:
                if free and self._locks is not None:
                    self._locks.release(byte)

    def next_turn(self, key: int) -> int:
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
        if locks.take(byte):
            return True
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and time.monotonic() > self._impatient_until:
            if locks.take(byte):
                return True
            os.sched_yield()
        self._impatient_until = deadline + _IMPATIENT_S
        return False

    def leave(self) -> None:
        """Give back what this process holds of it. It can still be read."""
        if self._locks is not None:
            self._locks.close()
