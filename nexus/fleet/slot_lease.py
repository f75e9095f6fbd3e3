"""The lease of a slot, with which a process gets a row of the load table and metrics files."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path

from nexus.fleet.circuits import CircuitTable
from nexus.fleet.history import HistoryTable
from nexus.fleet.limit_table import LimitTable
from nexus.fleet.load_table import HEALTH, SILENT_NS, SLOTS, WORKER, LoadTable, Row
from nexus.fleet.locks import LockFile
from nexus.fleet.run_directory import Generation, Started
from nexus.fleet.share_table import ShareTable

log = logging.getLogger("nexus.fleet")

_ROWS_LOCK = SLOTS  # the byte after those of the slots; held while a row is put into use
_ROWS_LOCK_TIMEOUT_S = 5.0
_ENVIRON_KEY = "NEXUS_SLOT_LEASE"


_Tables = tuple[LoadTable, CircuitTable, HistoryTable]


class NoFreeSlotError(Exception):
    """Every slot of the generation is in use, or its directory cannot be used."""


class SlotLease:
    """A leased slot, until `release()` or until the process ends, however it ends.

    Without a generation the lease is private: the process counts in memory that no other one sees.
    """

    def __init__(
        self,
        generation: Generation | None,
        *,
        slot: int,
        locks: LockFile | None,
        tables: _Tables,
        role: int = WORKER,
        nth: int = 0,
    ) -> None:
        self.generation = generation
        self.slot = slot
        self.table, self.circuits, self.history = tables
        self.row: Row = self.table.row(slot)
        self._locks = locks
        self._role = role
        self._nth = nth
        self._claim: LockFile | None = None

    @classmethod
    def lease(
        cls, generation: Generation, *, role: int = WORKER, nth: int | None = None
    ) -> SlotLease:
        """Lease the lowest free slot. Raises `NoFreeSlotError`.

        `nth`: how many workers the gateway has started, this one included; by default, one more
        than the rows show.
        """
        try:
            locks = LockFile(generation.slots)
            tables = _open_tables(generation)
        except OSError as error:
            raise NoFreeSlotError(f"{generation.path}: {error.strerror}") from error
        table = tables[0]
        for slot in range(SLOTS):
            if locks.acquire(slot):
                if not locks.acquire_within(_ROWS_LOCK, _ROWS_LOCK_TIMEOUT_S):
                    locks.close()
                    raise NoFreeSlotError(
                        f"{generation.path}: another process holds the lock on its rows"
                    )
                try:
                    table.use_row(slot)
                except OSError as error:
                    locks.close()
                    raise NoFreeSlotError(f"{generation.path}: {error.strerror}") from error
                # At once, so that a worker that is killed while it starts counts, too.
                if role == WORKER:
                    nth = table.worker_starts() + 1 if nth is None else nth
                    table.row(slot).set_worker_starts(nth)
                locks.release(_ROWS_LOCK)
                return cls(
                    generation, slot=slot, locks=locks, tables=tables, role=role, nth=nth or 0
                )
        locks.close()
        raise NoFreeSlotError(f"{generation.path}: all {SLOTS} slots are taken")

    def export_to(self, environ: MutableMapping[str, str]) -> None:
        """Put the lease into the environment, for the application that this process loads later."""
        if self.generation is not None and self._locks is not None:
            environ[_ENVIRON_KEY] = (
                f"{self.slot}:{self._locks.fileno()}:{self._nth}:{self.generation.path}"
            )

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> SlotLease | None:
        """The lease that a hook of the server acquired for this process; None without one."""
        exported = environ.pop(_ENVIRON_KEY, None)
        if exported is None:
            return None
        slot, fd, nth, path = exported.split(":", 3)
        generation = Generation(Path(path))
        locks = LockFile(generation.slots, fd=int(fd))
        tables = _open_tables(generation)
        return cls(generation, slot=int(slot), locks=locks, tables=tables, nth=int(nth))

    @classmethod
    def private(cls) -> SlotLease:
        tables = _open_tables(None)
        tables[0].use_row(0)
        return cls(None, slot=0, locks=None, tables=tables)

    def claim_row(self) -> None:
        """Zero the row of the slot's last holder, after its lost requests have been recorded."""
        self.row.clear()
        self._assign_row()

    def restore_row(self) -> None:
        """Restore this process's row if the table was damaged. Call it a few times a second."""
        self.table.restore_size()
        if self.table.rows <= self.slot or self.row.pid != os.getpid():
            try:
                self.table.use_row(self.slot)
            except OSError as error:
                log.error(
                    "the row of this process cannot be restored",
                    extra={"slot": self.slot, "why": error},
                )
                return
            # Without one, the supervisor would see a process that has always been silent.
            self.row.record_heartbeat(time.monotonic_ns())
            self._assign_row()

    def _assign_row(self) -> None:
        # First the starts: a reader that sees this worker must see how many were started. They may
        # be lost since the lease, if the table was truncated.
        if self._role == WORKER:
            self.row.set_worker_starts(self._nth)
        self.row.assign(os.getpid(), self._role)

    @property
    def metrics(self) -> Path | None:
        """Directory of the metrics files; None if the process counts in memory."""
        return self.generation.metrics if self.generation else None

    def started(self) -> Started | None:
        return self.generation.started() if self.generation else None

    def held_slots(self) -> list[int]:
        """The slots that live processes hold, this one's included."""
        if self._locks is None:
            return [self.slot]
        slots = range(self.table.rows)
        return [slot for slot in slots if slot == self.slot or self._locks.held_elsewhere(slot)]

    def workers(self) -> list[Row]:
        """The rows of the live workers."""
        rows = map(self.table.row, self.held_slots())
        return [row for row in rows if row.role == WORKER]

    def _has_worker(self, slot: int) -> bool:
        """Whether another live worker holds a slot. The health process may have got the slot of a
        worker that was killed."""
        assert self._locks is not None
        return self._locks.held_elsewhere(slot) and self.table.row(slot).role != HEALTH

    def open_limit_table(self) -> LimitTable:
        """Open the table of limits for this process."""
        if self.generation is None or self._locks is None:
            return LimitTable(None)
        return LimitTable(
            self.generation.limits,
            slot=self.slot,
            slots=lambda: self.table.rows,
            lives=self._has_worker,
            starts=lambda slot: self.table.row(slot).worker_starts,
        )

    def open_share_table(self) -> ShareTable:
        """Open the table of keys' shares for this process."""
        return ShareTable(self.generation.shares if self.generation else None)

    def health_process_silent(self) -> bool:
        """Whether the event loop of the health process hangs; False if unknown."""
        last = self.table.last_heartbeat(HEALTH)
        return last is not None and 0 < last < time.monotonic_ns() - SILENT_NS

    def reclaim_abandoned(self, record_lost: Callable[[int], object]) -> list[int]:
        """Clear the rows of processes that are gone; returns their slots.

        `record_lost` is called with each slot first. The slot is locked meanwhile, so that no other
        process records the same requests.
        """
        if self._locks is None:
            return []
        reclaimed, held = [], set(self.held_slots())
        for slot in range(self.table.rows):
            if slot in held or not self.table.row(slot).pid or not self._locks.acquire(slot):
                continue
            try:
                record_lost(slot)
                self.table.row(slot).clear()
                reclaimed.append(slot)
            finally:
                self._locks.release(slot)
        return reclaimed

    def attach(self, claim: LockFile) -> None:
        """Hold another lock, that on the run directory, until `release()`."""
        self._claim = claim

    def release(self) -> None:
        for lock in (self._locks, self._claim):
            if lock is not None:
                lock.close()
        self.circuits.release_locks()
        self.history.close()


def _open_tables(generation: Generation | None) -> _Tables:
    """The tables of a generation; private ones without a generation. Raises OSError."""
    if generation is None:
        return LoadTable(None), CircuitTable(None), HistoryTable(None)
    return (
        LoadTable(generation.load),
        CircuitTable(generation.circuits),
        HistoryTable(generation.history),
    )
