"""The table of requests in flight: one row for each process, one column for each backend, one writer for each row.

Layout, in 64-bit integers: a head of `HEAD` cells (format, number of rows ever used), then for each slot `HEAD` cells
of its own (see `Row`) and `COLUMNS` cells, one for each backend. Aligned 8-byte stores are not torn on the machines we
support, so readers take no lock; a row that is being written twice in a row is told by its sequence number.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

SLOTS = 256
COLUMNS = 512
HEAD = 8
FORMAT = 1
_STRIDE = HEAD + COLUMNS
_CELLS = HEAD + SLOTS * _STRIDE
_SEQUENCE, _IN_FLIGHT, _PID, _ROLE, _STARTS = range(5)
WORKER, HEALTH = 1, 2
"""Roles of a process."""


class LoadTable:
    """All rows, for reading; `row()` is for the process that writes it."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the table at `path`; None gives one that no other process sees."""
        size = _CELLS * 8
        if path is None:
            self._map = mmap.mmap(-1, size)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size < size:
                    # Space is reserved now: a full file system then fails here, and not as a SIGBUS at a later store.
                    os.posix_fallocate(fd, 0, size)
                self._map = mmap.mmap(fd, size)
            finally:
                os.close(fd)
        self._cells = memoryview(self._map).cast("q")
        self._cells[0] = FORMAT

    @property
    def rows(self) -> int:
        """How many rows were ever used; they are the first ones, since the lowest free slot is leased."""
        return self._cells[1]

    def use_row(self, slot: int) -> None:
        """Have readers look at the row of `slot` from now on. Two lessees must not call this at once."""
        self._cells[1] = max(self._cells[1], slot + 1)

    def row(self, slot: int) -> Row:
        """The row of `slot`, to be written by its one lessee."""
        return Row(self._cells, HEAD + slot * _STRIDE)

    def pending(self, column: int) -> int:
        """Requests in flight to one backend over all processes."""
        cells = self._cells
        first = HEAD * 2 + column
        return sum(cells[first : first + cells[1] * _STRIDE : _STRIDE])

    def in_flight(self) -> int:
        """Requests in the gateway over all processes, at a backend or not."""
        cells = self._cells
        first = HEAD + _IN_FLIGHT
        return sum(cells[first : first + cells[1] * _STRIDE : _STRIDE])

    def pending_in(self, column: int, slots: Iterable[int]) -> int:
        """As `pending`, over these slots only."""
        return sum(self._cells[HEAD + slot * _STRIDE + HEAD + column] for slot in slots)

    def idle_columns(self, columns: Sequence[int]) -> list[int]:
        """Those of `columns` that no row counts anything in, and that may go to another backend."""
        return [column for column in columns if self.pending(column) == 0]

    def close(self) -> None:
        self._cells.release()
        self._map.close()


class Row:
    """The cells of one process. Its owner writes; under threads, under a lock of the process."""

    __slots__ = ("_base", "_cells")

    def __init__(self, cells: memoryview, base: int) -> None:
        self._cells = cells
        self._base = base

    @property
    def in_flight(self) -> int:
        return self._cells[self._base + _IN_FLIGHT]

    @property
    def sequence(self) -> int:
        """Odd while a finished request is being recorded."""
        return self._cells[self._base + _SEQUENCE]

    def turn(self) -> None:
        """Mark the start (odd) or the end (even) of a recording."""
        self._cells[self._base + _SEQUENCE] += 1

    def enter(self) -> None:
        self._cells[self._base + _IN_FLIGHT] += 1

    def leave(self) -> None:
        self._cells[self._base + _IN_FLIGHT] -= 1

    def begin(self, column: int) -> None:
        self._cells[self._base + HEAD + column] += 1

    def end(self, column: int) -> None:
        self._cells[self._base + HEAD + column] -= 1

    @property
    def pid(self) -> int:
        """Its process; 0 where none took it since it was cleared."""
        return self._cells[self._base + _PID]

    @property
    def role(self) -> int:
        return self._cells[self._base + _ROLE]

    @property
    def worker_starts(self) -> int:
        """How many workers have taken it."""
        return self._cells[self._base + _STARTS]

    def take(self, pid: int, role: int) -> None:
        """Say whose it is now."""
        self._cells[self._base + _PID] = pid
        self._cells[self._base + _ROLE] = role
        self._cells[self._base + _STARTS] += role == WORKER

    def clear(self) -> None:
        """Zero the counts of a process that is gone; readers that look meanwhile look again."""
        cells, base = self._cells, self._base
        cells[base + _SEQUENCE] |= 1
        cells[base + _IN_FLIGHT] = cells[base + _PID] = cells[base + _ROLE] = 0
        cells[base + HEAD : base + _STRIDE] = memoryview(bytes(COLUMNS * 8)).cast("q")
        cells[base + _SEQUENCE] += 1
