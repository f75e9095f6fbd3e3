"""The load table: requests in flight and waiting, one row for each process, which alone writes it.

Layout, in 64-bit integers: a head of `HEAD` cells (format, number of rows ever used), then a row
for each slot. A row has `HEAD` cells of its own (see `Row`), then `_PLANES` blocks of `COLUMNS`
cells, one for each backend. The supported machines do not tear aligned 8-byte stores, so readers
take no lock. A seqlock protects changes that consist of several stores.

Times are nanoseconds on the host's monotonic clock, which all processes share.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

log = logging.getLogger("nexus.fleet")

SLOTS = 256
COLUMNS = 512
HEAD = 24
FORMAT = 4
_SEQUENCE, _IN_FLIGHT, _PID, _ROLE, _STARTS, _STREAMS, _WAITING, _QUEUE_SEEN, _TRIES = range(9)
_HEARTBEAT, _DRAINING, _DEPARTED, _DEATHS, _READING, _NAMESPACE, _SPOOLED = range(10, 17)
# _TRIES and _OUTCOMES take two cells: the current half of the window, and the last one.
_OF_PROCESS = (
    _IN_FLIGHT, _PID, _ROLE, _STREAMS, _WAITING, _HEARTBEAT, _DRAINING, _DEPARTED, _READING,
    _SPOOLED,
)  # fmt: skip
_PENDING, _QUEUED, _TICKET, _OUTCOMES = range(4)
_PLANES = 5
_STRIDE = HEAD + _PLANES * COLUMNS
_CELLS = HEAD + SLOTS * _STRIDE
WORKER, HEALTH = 1, 2
"""Roles of a process."""

SILENT_NS = 10_000_000_000
"""A process counts as silent if its event loop has not run for so long."""

HALF_WINDOW_NS = 5_000_000_000
WINDOW_S = 2 * HALF_WINDOW_NS / 1e9
"""Length of the window in which results count. It ends with the current, incomplete half."""
_EPOCH_SHIFT, _SECOND_SHIFT, _COUNT = 40, 20, (1 << 20) - 1
_EPOCHS = (1 << 22) - 1  # wraps after 240 days

NORMAL_TICKET = 1 << 62
"""Set in tickets of normal priority, so that all tickets of high priority are lower."""


def _plane(plane: int, column: int) -> int:
    return HEAD + plane * COLUMNS + column


_FIRST_PENDING = _plane(_PENDING, 0)
_FIRST_OUTCOMES = _plane(_OUTCOMES, 0)


@cache
def _pid_namespace() -> int:
    """The pid namespace of this process; 0 if the kernel does not say."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _extend(fd: int) -> bool:
    """Give the table's file its size; returns whether it was too short."""
    if os.fstat(fd).st_size >= _CELLS * 8:
        return False
    os.posix_fallocate(fd, 0, HEAD * 8)
    os.ftruncate(fd, _CELLS * 8)  # `use_row` reserves the space of a row
    return True


def _log_restored(path: Path) -> None:
    log.error("the load table was truncated and is restored", extra={"path": path})


class LoadTable:
    """All rows, for reading; `row()` is for the process that writes it."""

    def __init__(self, path: Path | None) -> None:
        """Open the table at `path`; None makes one that no other process sees."""
        self.path = path
        if path is None:
            self._map = mmap.mmap(-1, _CELLS * 8)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if _extend(fd):
                    _log_restored(path)
                self._map = mmap.mmap(fd, _CELLS * 8)
            finally:
                os.close(fd)
        self._cells = memoryview(self._map).cast("q")
        self._cells[0] = FORMAT

    @classmethod
    def create(cls, path: Path) -> None:
        """Make the file of an empty table, before any process opens it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _extend(fd)
        finally:
            os.close(fd)

    @property
    def rows(self) -> int:
        """How many rows were ever used: the first ones, because the lowest free slot is leased."""
        return self._cells[1]

    def use_row(self, slot: int) -> None:
        """Let readers read the row of `slot` from now on. Lessees must not call this at once.

        This reserves the row's space. On a full file system it raises OSError, instead of SIGBUS at
        a later store.
        """
        if self.path is not None and slot >= self.rows:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.posix_fallocate(
                    fd, (HEAD + self.rows * _STRIDE) * 8, (slot + 1 - self.rows) * _STRIDE * 8
                )
            finally:
                os.close(fd)
        self._cells[1] = max(self._cells[1], slot + 1)

    def restore_size(self) -> None:
        """Restore the size of a truncated file.

        Call it before the table is used: the kernel kills a process that touches a missing page.
        """
        try:
            if self.path is None or self.path.stat().st_size >= _CELLS * 8:
                return
            os.truncate(self.path, _CELLS * 8)
        except OSError:
            return  # the file is gone; the mapping stays valid
        self._cells[0] = FORMAT
        _log_restored(self.path)

    def row(self, slot: int) -> Row:
        """The row of `slot`, which only its lessee may write."""
        return Row(self._cells, HEAD + slot * _STRIDE)

    def _over_rows(self, cell: int) -> memoryview:
        """This cell of every row in use."""
        first = HEAD + cell
        return self._cells[first : first + self._cells[1] * _STRIDE : _STRIDE]

    def pending(self, column: int) -> int:
        """Requests in flight to one backend over all processes."""
        return sum(self._over_rows(_plane(_PENDING, column)))

    def in_flight(self) -> int:
        """Requests in the gateway over all processes, at a backend or not."""
        cells = self._cells
        return sum(cells[HEAD + _IN_FLIGHT : HEAD + _IN_FLIGHT + cells[1] * _STRIDE : _STRIDE])

    def reading_bodies(self) -> int:
        """Requests of `in_flight` whose body is still being read."""
        return sum(self._over_rows(_READING))

    def spooled_in(self, slots: Iterable[int]) -> int:
        """Bytes of uploads in files, over these slots."""
        return sum(self._cells[HEAD + slot * _STRIDE + _SPOOLED] for slot in slots)

    def waiting(self) -> int:
        """Requests that wait for capacity at a backend, over all processes."""
        return sum(self._over_rows(_WAITING))

    def pending_in(self, column: int, slots: Iterable[int]) -> int:
        """Requests queued for a backend or in flight to it, over these slots only."""
        cells, offsets = self._cells, (_plane(_PENDING, column), _plane(_QUEUED, column))
        return sum(cells[HEAD + slot * _STRIDE + offset] for slot in slots for offset in offsets)

    def streams_in(self, slots: Iterable[int]) -> int:
        """Streams that send content to a client now, over these slots."""
        return sum(self._cells[HEAD + slot * _STRIDE + _STREAMS] for slot in slots)

    def waiting_in(self, slots: Iterable[int]) -> int:
        """As `waiting`, over these slots only."""
        return sum(self._cells[HEAD + slot * _STRIDE + _WAITING] for slot in slots)

    def earliest_ticket(self, column: int, *, since_ns: int) -> int:
        """The earliest ticket that waits for the backend in a live process; 0 for none.

        A process that has not polled for capacity since `since_ns` hangs, or was killed and its
        tickets are stale.
        """
        tickets, seen = self._over_rows(_plane(_TICKET, column)), self._over_rows(_QUEUE_SEEN)
        return min(
            (ticket for ticket, at in zip(tickets, seen, strict=True) if ticket and at >= since_ns),
            default=0,
        )

    def outcomes(self, column: int, now_ns: int, *, since_ns: int = 0) -> tuple[int, int]:
        """(successes, failures) of attempts at a backend in the last window, over all processes.

        With `since_ns`, half windows that started before then do not count.
        """
        return self._window(_plane(_OUTCOMES, column), now_ns, since_ns, apart=COLUMNS)

    def requests_and_retries(self, now_ns: int) -> tuple[int, int]:
        """(requests started, retries) in the last window, over all processes."""
        return self._window(_TRIES, now_ns, 0, apart=1)

    def _window(self, cell: int, now_ns: int, since_ns: int, *, apart: int) -> tuple[int, int]:
        now = now_ns // HALF_WINDOW_NS
        epochs = {epoch & _EPOCHS for epoch in (now - 1, now) if epoch * HALF_WINDOW_NS >= since_ns}
        first = second = 0
        for half in (0, 1):
            for packed in self._over_rows(cell + half * apart):
                if packed >> _EPOCH_SHIFT in epochs:
                    first += packed & _COUNT
                    second += packed >> _SECOND_SHIFT & _COUNT
        return first, second

    def worker_starts(self) -> int:
        """How many workers the gateway has started."""
        return max((self.row(slot).worker_starts for slot in range(self.rows)), default=0)

    def last_heartbeat(self, role: int) -> int | None:
        """The latest heartbeat of a process of this role; None if none has a row."""
        rows = map(self.row, range(self.rows))
        return max((row.heartbeat for row in rows if row.role == role), default=None)

    def idle_columns(self, columns: Sequence[int]) -> list[int]:
        """Those of `columns` with nothing in flight, which may be assigned to another backend."""
        return [column for column in columns if self.pending(column) == 0]

    def close(self) -> None:
        self._cells.release()
        self._map.close()


class Row:
    """The cells of one process, which alone writes them; its threads need a lock."""

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

    def write_begin(self) -> None:
        """Make the sequence number odd: readers that see that read again."""
        self._cells[self._base + _SEQUENCE] += 1

    def write_end(self) -> None:
        """Make the sequence number even again, and different from before."""
        self._cells[self._base + _SEQUENCE] += 1

    def request_started(self, now_ns: int) -> None:
        self._cells[self._base + _IN_FLIGHT] += 1
        self._count(_TRIES, now_ns, 1, apart=1)

    def request_finished(self) -> None:
        self._cells[self._base + _IN_FLIGHT] -= 1

    def attempt_started(self, column: int) -> None:
        self._cells[self._base + _FIRST_PENDING + column] += 1

    def attempt_ended(self, column: int) -> None:
        self._cells[self._base + _FIRST_PENDING + column] -= 1

    def count_retry(self, now_ns: int) -> None:
        self._count(_TRIES, now_ns, 1 << _SECOND_SHIFT, apart=1)

    def count_outcome(self, column: int, now_ns: int, *, success: bool) -> None:
        """Count how an attempt at a backend ended."""
        self._count(
            _FIRST_OUTCOMES + column, now_ns, 1 if success else 1 << _SECOND_SHIFT, apart=COLUMNS
        )

    def _count(self, cell: int, now_ns: int, amount: int, *, apart: int) -> None:
        epoch = now_ns // HALF_WINDOW_NS & _EPOCHS
        at = self._base + cell + (epoch & 1) * apart
        packed = self._cells[at]
        self._cells[at] = (
            packed if packed >> _EPOCH_SHIFT == epoch else epoch << _EPOCH_SHIFT
        ) + amount

    def add_streams(self, change: int) -> None:
        """Count a stream that starts (1) or ends (-1)."""
        self._cells[self._base + _STREAMS] += change

    def add_bodies(self, change: int) -> None:
        """Count a body that starts (1) or ends (-1) being read."""
        self._cells[self._base + _READING] += change

    def add_spooled(self, change: int) -> None:
        """Count bytes of an upload that are written to a file, or (negative) freed."""
        self._cells[self._base + _SPOOLED] += change

    def add_queued(self, column: int, change: int) -> None:
        """Count a request that starts (1) or stops (-1) waiting for the backend in `column`."""
        self._cells[self._base + _WAITING] += change
        self._cells[self._base + _plane(_QUEUED, column)] += change

    def record_queue_poll(self, now_ns: int) -> None:
        """Record that this process has polled for capacity for its waiters."""
        self._cells[self._base + _QUEUE_SEEN] = now_ns

    def post_ticket(self, column: int, ticket: int) -> None:
        """Publish the earliest ticket that waits for the backend in this process; 0 for none."""
        self._cells[self._base + _plane(_TICKET, column)] = ticket

    @property
    def heartbeat(self) -> int:
        """When its event loop last ran; 0 for a process that does not report that."""
        return self._cells[self._base + _HEARTBEAT]

    def record_heartbeat(self, now_ns: int) -> None:
        self._cells[self._base + _HEARTBEAT] = now_ns

    def is_silent(self, now_ns: int) -> bool:
        return 0 < self.heartbeat < now_ns - SILENT_NS

    @property
    def draining(self) -> bool:
        """Whether it has been replaced, and only finishes its requests."""
        return bool(self._cells[self._base + _DRAINING])

    def mark_draining(self) -> None:
        self._cells[self._base + _DRAINING] = 1

    @property
    def pid(self) -> int:
        """The id of its process; 0 if none has had it since it was cleared."""
        return self._cells[self._base + _PID]

    @property
    def in_our_namespace(self) -> bool:
        """Whether its process id is valid here; in another container it names another process."""
        return self._cells[self._base + _NAMESPACE] == _pid_namespace()

    @property
    def role(self) -> int:
        return self._cells[self._base + _ROLE]

    @property
    def worker_starts(self) -> int:
        """How many workers the gateway had started up to the last one of this row."""
        return self._cells[self._base + _STARTS]

    def set_worker_starts(self, count: int) -> None:
        self._cells[self._base + _STARTS] = count

    @property
    def worker_deaths(self) -> int:
        """How many workers with this row were killed or crashed."""
        return self._cells[self._base + _DEATHS]

    def mark_departed(self) -> None:
        """Record that the process ends on request."""
        self._cells[self._base + _DEPARTED] = 1

    def assign(self, pid: int, role: int) -> None:
        """Record which process has it."""
        self._cells[self._base + _NAMESPACE] = _pid_namespace()
        self._cells[self._base + _PID] = pid
        self._cells[self._base + _ROLE] = role

    def clear(self) -> None:
        """Zero the counts of a process that is gone. Readers that meet this read again."""
        cells, base = self._cells, self._base
        cells[base + _SEQUENCE] |= 1
        if self.pid and self.role == WORKER and not cells[base + _DEPARTED]:
            cells[base + _DEATHS] += 1
        for cell in _OF_PROCESS:
            cells[base + cell] = 0
        blank = _OUTCOMES * COLUMNS  # outcomes stay valid for their window
        cells[base + HEAD : base + HEAD + blank] = memoryview(bytes(blank * 8)).cast("q")
        cells[base + _SEQUENCE] += 1
