"""The ledger: what was spent and used, in an SQLite file that outlives the gateway."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from nexus.fleet.accounts import StoredAccount, Window
from nexus.metrics.usage import AMOUNTS, NAMES, UsageKey

FILE = "ledger.sqlite"
_NAMES = ", ".join(f'"{name}"' for name in NAMES)
_AMOUNTS = ", ".join(AMOUNTS)
_INTEGERS = ", ".join(f"{name} INTEGER NOT NULL" for name in AMOUNTS)
_TEXTS = ", ".join(f'"{name}" TEXT NOT NULL' for name in NAMES)
_TABLES = f"""
CREATE TABLE IF NOT EXISTS windows (
    budget TEXT NOT NULL, subject TEXT NOT NULL, start INTEGER NOT NULL, "end" INTEGER NOT NULL,
    spent INTEGER NOT NULL, PRIMARY KEY (budget, subject, start)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage (
    hour INTEGER NOT NULL, {_TEXTS}, {_INTEGERS}, PRIMARY KEY (hour, {_NAMES})
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (
    generation TEXT NOT NULL, {_TEXTS}, {_INTEGERS}, PRIMARY KEY (generation, {_NAMES})
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen_windows (
    generation TEXT NOT NULL, budget TEXT NOT NULL, subject TEXT NOT NULL, start INTEGER NOT NULL,
    spent INTEGER NOT NULL, PRIMARY KEY (generation, budget, subject, start)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS generations (
    generation TEXT NOT NULL PRIMARY KEY, written INTEGER NOT NULL
) WITHOUT ROWID;
"""
_WINDOWS = """
SELECT budget, subject, start, "end", windows.spent - COALESCE(seen.spent, 0)
FROM windows LEFT JOIN (SELECT * FROM seen_windows WHERE generation = ?) AS seen
USING (budget, subject, start) WHERE "end" > ?
"""
_HOUR_S = 3600
_MARKS = ", ".join("?" * (1 + len(NAMES) + len(AMOUNTS)))
_ADDED = ", ".join(f"{name} = {name} + excluded.{name}" for name in AMOUNTS)
_REPLACED = ", ".join(f"{name} = excluded.{name}" for name in AMOUNTS)
_ADD = f"INSERT INTO usage VALUES ({_MARKS}) ON CONFLICT (hour, {_NAMES}) DO UPDATE SET {_ADDED}"
_SEE = (
    f"INSERT INTO seen VALUES ({_MARKS}) "
    f"ON CONFLICT (generation, {_NAMES}) DO UPDATE SET {_REPLACED}"
)
_SPEND = (
    "INSERT INTO windows VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (budget, subject, start) DO UPDATE SET spent = spent + excluded.spent"
)
_SEE_WINDOW = (
    "INSERT INTO seen_windows VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (generation, budget, subject, start) DO UPDATE SET spent = excluded.spent"
)
_WRITTEN = (
    "INSERT INTO generations VALUES (?, ?) "
    "ON CONFLICT (generation) DO UPDATE SET written = excluded.written"
)
_FORGET_AFTER_S = 30 * 86400
"""A generation that has written nothing for so long is over."""


class Ledger:
    """The ledger of one gateway. Only the health process writes it.

    What a generation has used and spent only grows. The ledger keeps what it has seen of that, in
    the same transaction as the sums over all generations. So nothing is counted twice or lost,
    whenever the process is killed, and whichever generation is written next.
    """

    def __init__(self, path: Path) -> None:
        """Open or create it. Raises `sqlite3.Error`."""
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(path, timeout=1.0)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_TABLES)
        except sqlite3.Error:
            self._database.close()
            raise
        self._seen: dict[UsageKey, Sequence[int]] = {}
        self._seen_windows: dict[tuple[str, str, int], int] = {}
        self._generation: str | None = None

    def windows(self, generation: str, now: float) -> list[Window]:
        """The windows that have not ended, without what this generation spent."""
        return self._database.execute(_WINDOWS, (generation, now)).fetchall()

    def write(
        self,
        generation: str,
        usage: Mapping[UsageKey, Sequence[int]],
        accounts: Iterable[StoredAccount],
        *,
        now: float,
    ) -> None:
        """Write what has changed, in one transaction. Raises `sqlite3.Error`."""
        if generation != self._generation:
            self._read_seen(generation, now)
        changed = {key: now_ for key, now_ in usage.items() if now_ != self._seen.get(key)}
        own = {
            (one.budget, one.subject, one.start): (one.end, one.spent - one.loaded)
            for one in accounts
            if one.spent != one.saved
        }
        if not changed and not own:
            return
        hour = int(now) // _HOUR_S * _HOUR_S
        added = []
        for key, amounts in changed.items():
            before = self._seen.get(key, (0,) * len(AMOUNTS))
            difference = [new - old for new, old in zip(amounts, before, strict=True)]
            added.append((hour, *key, *difference))
        with self._database:  # commits, or rolls back
            self._database.executemany(_ADD, added)
            self._database.executemany(
                _SEE, [(generation, *key, *amounts) for key, amounts in changed.items()]
            )
            self._database.executemany(
                _SPEND,
                [
                    (*key, end, spent - self._seen_windows.get(key, 0))
                    for key, (end, spent) in own.items()
                ],
            )
            self._database.executemany(
                _SEE_WINDOW, [(generation, *key, spent) for key, (_, spent) in own.items()]
            )
            self._database.execute(_WRITTEN, (generation, int(now)))
        self._seen.update(changed)
        self._seen_windows.update((key, spent) for key, (_, spent) in own.items())

    def report(
        self,
        by: Sequence[str],
        *,
        since: float | None,
        until: float | None,
        only: tuple[str, Sequence[str]] | None = None,
    ) -> list[tuple[object, ...]]:
        """Sums of usage by some of `NAMES` and `hour`, of the hours in a span of time.

        `only` is one of `NAMES` and the values that count.
        """
        columns = ", ".join(f'"{name}"' for name in by)
        sums = ", ".join(f"SUM({name})" for name in AMOUNTS)
        select = (
            f"SELECT {columns}{', ' if by else ''}{sums} FROM usage WHERE hour >= ? AND hour < ?"
        )
        values: Sequence[str] = ()
        if only is not None:
            values = only[1]
            select += f' AND "{only[0]}" IN ({", ".join("?" * len(values))})'
        if by:
            select += f" GROUP BY {columns} ORDER BY {columns}"
        span = (since or 0, 1 << 40 if until is None else until)
        with closing(self._database.execute(select, (*span, *values))) as rows:
            return [row for row in rows.fetchall() if row[-1] is not None]

    def _read_seen(self, generation: str, now: float) -> None:
        """Read what was seen of a generation; forget those that are over."""
        over = (generation, int(now) - _FORGET_AFTER_S)
        with self._database:
            for table in ("seen", "seen_windows"):
                self._database.execute(
                    f"DELETE FROM {table} WHERE generation != ? AND generation NOT IN "
                    "(SELECT generation FROM generations WHERE written > ?)",
                    over,
                )
            self._database.execute("DELETE FROM generations WHERE written <= ?", over[1:])
        select = f"SELECT {_NAMES}, {_AMOUNTS} FROM seen WHERE generation = ?"
        rows = self._database.execute(select, (generation,)).fetchall()
        names = len(NAMES)
        self._seen = {UsageKey(*row[:names]): tuple(row[names:]) for row in rows}
        select = "SELECT budget, subject, start, spent FROM seen_windows WHERE generation = ?"
        rows = self._database.execute(select, (generation,)).fetchall()
        self._seen_windows = {(budget, *rest): spent for budget, *rest, spent in rows}
        self._generation = generation

    def close(self) -> None:
        self._database.close()


def windows_in(path: Path, generation: str, now: float) -> list[Window]:
    """As `Ledger.windows`, of a file that another gateway writes. Raises `sqlite3.Error`."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as database:
        return database.execute(_WINDOWS, (generation, now)).fetchall()
