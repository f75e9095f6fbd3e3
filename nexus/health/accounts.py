"""The health process's part in budgets and usage: the accounts, and the ledger."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterable, Sequence

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
        self._generation: GenerationContext | None = None
        self._table: LimitTable | None = None
        self._usage: UsageReader | None = None
        self.failing = False
        self._lock = gevent.lock.RLock()

    def run(self) -> None:
        """Keep them without end."""
        due = 0.0
        while True:
            snapshot, now = self._publisher.snapshot, time.monotonic()
            if snapshot is not None and (snapshot.config.budgets or snapshot.config.costs.price):
                new = self._publisher.generation.context is not self._generation
                waited_for = self._table is not None and not self._table.ready
                if now >= due or waited_for or (new and not self.failing):
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
                if self._publisher.generation.context is not self._generation:
                    self._follow()
                self._write()
        except (OSError, sqlite3.Error) as error:
            self._publisher.generation.context.recorder.ledger_failed()
            if not self.failing:
                log.error("the ledger cannot be written", extra={"why": error})
            self.failing = True
            if self._table is not None and self._ledger is None:
                self._table.set_ready()  # a ledger that cannot be opened must not stop requests
            return False
        if self.failing:
            log.info("the ledger is written again")
        self.failing = False
        return True

    def report(
        self,
        by: Sequence[str],
        *,
        since: float | None,
        until: float | None,
        only: tuple[str, Sequence[str]] | None = None,
    ) -> list[tuple[object, ...]] | None:
        """The sums of usage up to now; None without a ledger."""
        if self._generation is not None:
            self.persist()
        if self._ledger is None:
            return None
        return self._ledger.report(by, since=since, until=until, only=only)

    def close(self) -> None:
        """Write the rest, and close the ledger."""
        if self._generation is not None:
            self.persist()
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
        if self._table is not None:
            self._table.close()
            self._table = None

    def _follow(self) -> None:
        """Move on to the present generation, after the last changes of the one before."""
        generation = self._publisher.generation
        lease = generation.context.slot_lease
        table = lease.open_limit_table()
        if (before := self._table) is not None:
            try:
                self._write()
            except (OSError, sqlite3.Error):
                # Tried again later. Until then, requests must not wait for a disk.
                _load(table, [one.window for one in before.accounts.entries()])
                table.set_ready()
                table.close()
                raise
            before.close()
        self._table, self._usage = table, None
        if lease.generation is not None:
            self._usage = generation.context.collector.usage_reader(lease.generation.usage)
        self._generation = generation.context
        self._name = generation.path.name

    def _write(self) -> None:
        table = self._table
        if table is None:
            return
        if self._ledger is None:
            self._ledger = self._open(table)
        if not table.loaded:
            _load(table, self._ledger.windows(time.time()))
            table.set_loaded()
        if not _locked(table):
            return
        try:
            if self._publisher.generation.context is self._generation:
                table.spend_holds_of_dead()
        finally:
            table.release()
        accounts = table.accounts.entries()
        usage = self._usage.read() if self._usage is not None else {}
        self._ledger.write(self._name, usage, accounts, now=time.time())
        for one in accounts:
            if one.spent != one.saved:
                table.accounts.set_saved(one.record, one.spent)

    def _open(self, table: LimitTable) -> Ledger:
        try:
            return Ledger(self._state_dir.claim() / FILE)
        except StateDirectoryHeld:
            # Until the other gateway has ended, what it has written counts.
            _load(table, windows_in(self._state_dir.path / FILE, time.time()))
            raise


def _load(table: LimitTable, windows: Iterable[Window]) -> None:
    """Let accounts go on from what was spent before.

    What was loaded before is not added again, so it may be called again after a failure, or once
    more is known. Requests may have used the accounts meanwhile.
    """
    accounts, now = table.accounts, time.time()
    if not _locked(table):
        raise OSError("the accounts are locked")
    try:
        for budget, subject, start, end, spent in windows:
            if end <= now:
                continue
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
