"""The usage of all limits: a table in shared memory, which all workers change under one lock.

A record is a bucket (when it is full again), or the number of requests in progress of one slot. A
full bucket or a count of zero means the same as a missing record, so its record may be reused.

A change is first written as an intent: the cells and their new values. If a process is killed in
between, the next holder of the lock completes the intent. So a change is made as a whole or not at
all. Attempts to lock end after a while, because the holder may have been stopped.

Times are nanoseconds on the host's monotonic clock.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from nexus.fleet.accounts import CELLS, Accounts, value_after
from nexus.fleet.limit_names import LimitNames
from nexus.fleet.locks import LockFile
from nexus.fleet.mapping import map_descriptor

RECORDS = 16_384
_HEAD = 2048
_INTENT = 1  # how many numbers follow: cell, value, …; 0 if no change is in progress
_READY = _HEAD - 1
_RECORD = 8
_KEY, _KEY_REST, _LEVEL, _UNIT, _FULL_SEEN = range(5)
_SLOT_SPACE = 1 << 16
_MOST_PROBES = 32
_LATEST = 1 << 62
"""The latest time at which a bucket is full again: in 146 years."""
_SPINS, _TRIES, _PATIENT_TRIES, _PAUSE_S = 10, 20, 500, 0.001

Digest = tuple[int, int]


class LimitTable:
    """The table, as one process uses it, between `acquire` and `release`.

    Attributes:
        accounts: The accounts of budgets.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        slot: int = 0,
        slots: Callable[[], int] = lambda: 1,
        lives: Callable[[int], bool] = lambda _: True,
        starts: Callable[[int], int] = lambda _: 0,
        records: int = RECORDS,
    ) -> None:
        """Open or create the table at `path`; None makes one that no other process sees.

        `slots` returns how many slots were ever used; `lives` whether a process holds a slot, and
        `starts` which one by a number that differs from that of the slot's earlier holders.
        """
        self._slot, self._slots, self._lives, self._records = slot, slots, lives, records
        self._starts, self._owner = starts, _owner(slot, starts(slot))
        end = _HEAD + records * _RECORD
        size = (end + CELLS) * 8
        self._locks = None if path is None else LockFile(path)
        self._names = LimitNames(None if path is None else path.with_suffix(".names"))
        self._map = map_descriptor(self._locks.fileno() if self._locks else None, size)
        self._cells = memoryview(self._map).cast("q")
        self._process_lock = threading.Lock()  # excludes other threads of this process
        self._staged: dict[int, int] = {}
        self._claimed: list[int] = []
        self._records_found: dict[Digest, int] = {}
        if path is None:
            self.set_ready()  # there is no ledger for it
        self.accounts = Accounts(self._cells, first=end, slot=slot, staged=self._staged)

    def acquire(self, *, patient: bool = False) -> bool:
        """Lock the table, and complete the change of a process that was killed.

        Returns False if another process holds it for too long: 20 ms, or half a second if
        `patient`.
        """
        if not self._acquire_now() and not self._acquire_soon(patient=patient):
            return False
        if self._cells[_INTENT]:
            self._complete()
        self._staged.clear()
        self._claimed.clear()
        return True

    def _acquire_now(self) -> bool:
        if not self._process_lock.acquire(False):
            return False
        if self._locks is None or self._locks.acquire_file():
            return True
        self._process_lock.release()
        return False

    def _acquire_soon(self, *, patient: bool) -> bool:
        for tried in range(_SPINS + (_PATIENT_TRIES if patient else _TRIES)):
            if tried < _SPINS:
                os.sched_yield()
            else:
                time.sleep(_PAUSE_S)
            if self._acquire_now():
                return True
        return False

    def release(self) -> None:
        """Unlock the table, and drop staged changes that were not committed."""
        if self._locks is not None:
            self._locks.release_file()
        self._process_lock.release()

    # Changes

    def commit(self) -> None:
        """Apply all staged changes as one."""
        cells, staged = self._cells, self._staged
        several = len(staged) > 1  # a single cell changes as a whole
        if several:
            intent = array("q", chain.from_iterable(staged.items()))
            cells[_INTENT + 1 : _INTENT + 1 + len(intent)] = intent
            cells[_INTENT] = len(intent)
        for cell, value in staged.items():
            cells[cell] = value
        if several:
            cells[_INTENT] = 0
        staged.clear()

    def staged(self) -> dict[int, int]:
        """What is staged now, for `unstage`."""
        return self._staged.copy()

    def unstage(self, earlier: dict[int, int]) -> None:
        """Drop the changes that were staged since `staged` returned `earlier`."""
        self._staged.clear()
        self._staged.update(earlier)

    def _complete(self) -> None:
        """Apply the changes of an intent that another process has left."""
        cells = self._cells
        for at in range(_INTENT + 1, _INTENT + 1 + cells[_INTENT], 2):
            cells[cells[at]] = cells[at + 1]
        cells[_INTENT] = 0

    # Buckets

    def bucket(self, digest: Digest, now_ns: int, name: str = "") -> int | None:
        """The record of a bucket, made if it is missing; None if the table is full."""
        record = self._find(digest)
        return self._claim(digest, now_ns, name) if record is None else record

    def read_bucket(
        self, digest: Digest, now_ns: int, name: str
    ) -> tuple[int, int, int, int] | None:
        """The record of a bucket, as of `bucket`, and its `level`."""
        cells, record = self._cells, self._records_found.get(digest)
        if record is None or (cells[record], cells[record + _KEY_REST]) != digest:
            record = self.bucket(digest, now_ns, name)
            if record is None:
                return None
        return record, cells[record + _LEVEL], cells[record + _UNIT], cells[record + _FULL_SEEN]

    def level(self, record: int) -> tuple[int, int, int]:
        """(when it is full again, how long a unit takes, when it was last seen to be full)."""
        cells = self._cells
        return cells[record + _LEVEL], cells[record + _UNIT], cells[record + _FULL_SEEN]

    def stage_level(self, record: int, full_at: int, unit: int, full_seen: int) -> None:
        """Change a bucket at the next `commit`."""
        cells, staged = self._cells, self._staged
        if not 0 <= full_at <= _LATEST:
            full_at = 0 if full_at < 0 else _LATEST
        staged[record + _LEVEL] = full_at
        if cells[record + _UNIT] != unit:
            staged[record + _UNIT] = unit
        if cells[record + _FULL_SEEN] != full_seen:
            staged[record + _FULL_SEEN] = full_seen

    # Requests in progress

    def in_progress(self, digest: Digest) -> int:
        """Requests in progress over all live processes; clears the counts of others."""
        total = 0
        for slot in range(self._slots()):
            record = self._find(_of_slot(digest, slot))
            if record is None or not (count := self._cells[record + _LEVEL]):
                continue
            if self._owner_lives(-self._cells[record + _UNIT]):
                total += count
            else:
                self._cells[record + _LEVEL] = 0
        return total

    def _owner_lives(self, owner: int) -> bool:
        """Whether the process that counted in a record still runs; its slot may have another."""
        if owner == self._owner:
            return True
        slot = owner % _SLOT_SPACE - 1
        return (
            slot != self._slot and self._lives(slot) and _owner(slot, self._starts(slot)) == owner
        )

    def stage_progress(self, digest: Digest, change: int, now_ns: int, name: str = "") -> bool:
        """Count a request in (1) or out (-1) at the next `commit`; False if the table is full."""
        own = _of_slot(digest, self._slot)
        record = self._find(own)
        if record is None:
            record = self._claim(own, now_ns, name, owner=self._owner) if change > 0 else None
        if record is None:
            return False
        count = self._cells[record + _LEVEL]
        if self._cells[record + _UNIT] != -self._owner:  # of the slot's holder before
            self._staged[record + _UNIT] = -self._owner
            count = 0
        self._staged[record + _LEVEL] = max(0, count + change)
        return True

    def clear_slot(self) -> None:
        """Clear the requests of the process that had this slot before; its holds become spent."""
        self.accounts.spend_holds_of(lambda slot: slot == self._slot, self.commit)
        cells = self._cells
        end = _HEAD + self._records * _RECORD
        owners = cells[_HEAD + _UNIT : end : _RECORD].tolist()
        for number, unit in enumerate(owners):
            if unit < 0 and -unit % _SLOT_SPACE == self._slot + 1:
                cells[_HEAD + number * _RECORD + _LEVEL] = 0

    # Reports

    def stored(self) -> dict[str, tuple[int, int]]:
        """What is stored under each name; needs no lock.

        It is (when the bucket is full again, how long a unit takes), or (requests in progress, 0).
        """
        found: dict[str, tuple[int, int]] = {}
        end = _HEAD + self._records * _RECORD
        for number, key in enumerate(self._cells[_HEAD:end:_RECORD].tolist()):
            name = self._names.read(number, key) if key else None
            if not name:
                continue
            level, unit, _ = self.level(_HEAD + number * _RECORD)
            if unit >= 0:
                found[name] = level, unit
            else:
                count = level if level and self._owner_lives(-unit) else 0
                found[name] = found.get(name, (0, 0))[0] + count, 0
        return found

    # Records

    def _find(self, digest: Digest) -> int | None:
        cells, known = self._cells, self._records_found.get(digest)
        if known is not None and (cells[known], cells[known + _KEY_REST]) == digest:
            return known
        key, rest = digest
        number = key % self._records
        for _ in range(min(_MOST_PROBES, self._records)):
            record = _HEAD + number * _RECORD
            stored = cells[record]
            if stored == key and cells[record + _KEY_REST] == rest:
                if len(self._records_found) >= self._records:
                    self._records_found.clear()
                self._records_found[digest] = record
                return record
            if not stored:
                return None
            number = (number + 1) % self._records
        return None

    def _claim(self, digest: Digest, now_ns: int, name: str = "", *, owner: int = 0) -> int | None:
        """Reserve an unused record. It stays unused until the next `commit`."""
        key, rest = digest
        cells, number = self._cells, key % self._records
        for _ in range(min(_MOST_PROBES, self._records)):
            record = _HEAD + number * _RECORD
            if self._is_free(record, now_ns):
                self._claimed.append(record)
                # The level first, the key last: if the process is killed in between, the record
                # is still unused.
                cells[record + _LEVEL] = 0
                cells[record + _UNIT] = -owner
                cells[record + _FULL_SEEN] = 0
                cells[record + _KEY_REST] = rest
                cells[record] = key
                self._names.write(number, key, name.encode(errors="replace"))
                return record
            number = (number + 1) % self._records
        return None

    def _is_free(self, record: int, now_ns: int) -> bool:
        if record in self._claimed:
            return False
        level = value_after(self._staged, self._cells, record + _LEVEL)
        unit = value_after(self._staged, self._cells, record + _UNIT)
        if unit >= 0:
            return level <= now_ns
        return not level or not self._owner_lives(-unit)

    @property
    def ready(self) -> bool:
        """Whether requests with a hard budget may be served."""
        return bool(self._cells[_READY])

    def set_ready(self) -> None:
        self._cells[_READY] = 1

    def spend_holds_of_dead(self) -> None:
        """Count what killed processes held as spent. For a process that holds nothing itself: its
        slot may have been that of a worker."""
        self.accounts.spend_holds_of(
            lambda slot: slot == self._slot or not self._lives(slot), self.commit
        )

    def close(self) -> None:
        self._cells.release()
        self._map.close()
        self._names.close()
        if self._locks is not None:
            self._locks.close()


def _owner(slot: int, starts: int) -> int:
    """The number of a process: its slot, and how many workers had started with it."""
    return starts * _SLOT_SPACE + slot + 1


def _of_slot(digest: Digest, slot: int) -> Digest:
    """The key of the record of the process with this slot."""
    key, rest = digest
    return (key + (slot + 1) * 0x9E3779B9) & 0x7FFF_FFFF_FFFF_FFFF or 1, rest
