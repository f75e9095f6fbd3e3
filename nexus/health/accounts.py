"""The health process's part in budgets and usage: the accounts, and the ledger."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import gevent
import gevent.lock

from nexus.access.budgets import digest
from nexus.admin.context import GenerationContext
from nexus.fleet.accounts import Window
from nexus.fleet.limit_table import LimitTable
from nexus.fleet.state_directory import StateDirectory, StateDirectoryHeld
from nexus.health.ledger import FILE, Ledger, windows_in
from nexus.health.publisher import Publisher
from nexus.metrics.usage import UsageReader

log = logging.getLogger("nexus.health")

_POLL_INTERVAL_S = 0.1
_RETRY_S = 5.0
_BUSY_S = 0.2


class _Followed(NamedTuple):
    """The accounts and the usage of one generation."""

    name: str
    table: LimitTable
    usage: UsageReader | None

    def close(self) -> None:
        self.table.close()
        if self.usage is not None:
            self.usage.close()


class AccountKeeper:
    """Keeps the accounts of the present generation, and writes the ledger.

    It starts with the first configuration that has prices or budgets.

    Attributes:
        failing: The last attempt to write the ledger failed.
    """

    def __init__(self, publisher: Publisher, state_dir: StateDirectory) -> None:
        self._publisher = publisher
        self._state_dir = state_dir
        self._ledger: Ledger | None = None
        self._context: GenerationContext | None = None
        self._current: _Followed | None = None
        self._unwritten: list[_Followed] = []  # generations before, until their last changes are
        self._loaded = False  # whether the current accounts have what the ledger says
        self.failing = False
        self._lock = gevent.lock.RLock()

    def run(self) -> None:
        """Keep them without end."""
        due = 0.0
        while True:
            snapshot, now = self._publisher.snapshot, time.monotonic()
            if snapshot is not None and (snapshot.config.budgets or snapshot.config.costs.price):
                new = self._publisher.generation.context is not self._context
                waited_for = self._current is not None and not self._current.table.ready
                if now >= due or new or waited_for:
                    due = now + snapshot.config.costs.persist_seconds
                    if not self.persist():
                        due = now + _RETRY_S
            gevent.sleep(_POLL_INTERVAL_S)

    def persist(self) -> bool:
        """Write into the ledger what has changed; returns False if that fails.

        A failure is counted, and logged once. Whatever was not written is written later.
        """
        try:
            with self._lock:
                if self._publisher.generation.context is not self._context:
                    self._follow()
                self._write()
        except (OSError, sqlite3.Error) as error:
            self._publisher.generation.context.recorder.ledger_failed()
            if not self.failing:
                log.error("the ledger cannot be written", extra={"why": error})
            self.failing = True
            if self._current is not None and self._ledger is None:
                self._current.table.set_ready()  # a missing ledger must not stop requests
            return False
        if self.failing:
            log.info("the ledger is written again")
        self.failing = False
        return True

    def report(self, by: Sequence[str], **span: Any) -> list[tuple[object, ...]] | None:
        """As `Ledger.report`, up to now; None without a ledger."""
        if self._current is not None:
            self.persist()
        return self._ledger.report(by, **span) if self._ledger is not None else None

    def close(self) -> None:
        """Write the rest, and close the ledger."""
        if self._current is not None:
            self.persist()
            for one in (*self._unwritten, self._current):
                one.close()
            self._current = None
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def _follow(self) -> None:
        """Move on to the present generation. Its accounts go on from those of the one before, whose
        last changes are written as soon as that is possible."""
        generation, before = self._publisher.generation, self._current
        lease = generation.context.slot_lease
        table, usage = lease.open_limit_table(), None
        if lease.generation is not None:
            usage = generation.context.collector.usage_reader(lease.generation.usage)
        self._current = _Followed(generation.path.name, table, usage)
        self._context, self._loaded = generation.context, False
        if before is not None:
            self._unwritten.append(before)
            if before.usage is not None:
                before.usage.read()  # it keeps the files open, which are deleted soon
            _load(table, [one.window for one in before.table.accounts.entries()])
            table.set_ready()

    def _write(self) -> None:
        current = self._current
        if current is None:
            return
        if self._ledger is None:
            self._ledger, self._loaded = self._open(current), False
        while self._unwritten:
            self._write_changes(self._unwritten[0], self._ledger)
            self._unwritten.pop(0).close()
        if not self._loaded:
            _load(current.table, self._ledger.windows(current.name, time.time()))
            current.table.set_ready()
            self._loaded = True
        self._write_changes(current, self._ledger)

    def _write_changes(self, one: _Followed, ledger: Ledger) -> None:
        accounts, locked = one.table.accounts, _locked(one.table)
        try:
            if locked and one is self._current:
                one.table.spend_holds_of_dead()
            entries = accounts.entries()
        finally:
            if locked:
                one.table.release()
        usage = one.usage.read() if one.usage is not None else {}
        ledger.write(one.name, usage, entries, now=time.time())
        for entry in entries:
            if entry.spent != entry.saved:
                accounts.set_saved(entry.record, entry.spent)

    def _open(self, current: _Followed) -> Ledger:
        try:
            return Ledger(self._state_dir.claim() / FILE)
        except StateDirectoryHeld:
            if not self._unwritten:
                # Until the other gateway has ended, what it has written counts.
                file = self._state_dir.path / FILE
                with suppress(sqlite3.Error):
                    _load(current.table, windows_in(file, current.name, time.time()))
            raise


def _load(table: LimitTable, windows: Iterable[Window]) -> None:
    """Let accounts go on from what was spent elsewhere. Requests may have used them meanwhile.

    It may be called again once more is known. Raises OSError.
    """
    accounts, now = table.accounts, time.time()
    for budget, subject, start, end, spent in windows:
        if end <= now:
            continue
        if not _locked(table):
            raise OSError("the accounts are locked")
        try:
            key = digest(budget, subject, start)
            record = accounts.find(key)
            if record is None:
                record = accounts.claim(key, budget, subject, start=start, end=end, now=now)
            if record is not None:
                accounts.stage_loaded(record, spent)
                table.commit()
        finally:
            table.release()


def _locked(table: LimitTable) -> bool:
    """Lock the table; another process may have it for a moment."""
    deadline = time.monotonic() + _BUSY_S
    while not (acquired := table.acquire()) and time.monotonic() < deadline:
        gevent.sleep(0.01)
    return acquired
