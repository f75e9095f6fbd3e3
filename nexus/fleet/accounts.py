"""The accounts of budgets: a part of the limits' table, changed under the same lock and intent.

An account has what was spent in one window, and what is held for requests in progress. What each
process holds is stored once more by slot: if the process is killed, its holds become spent.

Amounts are nano-dollars, times Unix seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

ACCOUNTS = 4096
_TEXT_CELLS = 80
"""Room for a budget's name of 64 characters and five values of 64 bytes."""
_KEY, _KEY_REST, _SPENT, _HELD, _START, _END, _LENGTH, _SAVED, _LOADED, _TEXT = range(10)
_ACCOUNT = _TEXT + _TEXT_CELLS
_LONGEST_TEXT = _TEXT_CELLS * 8
_HOLDS = 16_384
_HOLD = 2
_OWNER, _AMOUNT = range(2)
_SLOTS = 1024
CELLS = ACCOUNTS * _ACCOUNT + _HOLDS * _HOLD
_MOST_PROBES = 64


Window = tuple[str, str, int, int, int]
"""Budget, subject, start, end, and the amount spent."""


class StoredAccount(NamedTuple):
    """An account as it is stored.

    Attributes:
        record: Where.
        saved: What was spent as the ledger has it.
        loaded: What was spent elsewhere: in other generations, and by other gateways.
    """

    record: int
    budget: str
    subject: str
    start: int
    end: int
    spent: int
    held: int
    saved: int
    loaded: int = 0

    @property
    def window(self) -> Window:
        return self.budget, self.subject, self.start, self.end, self.spent


def value_after(staged: Mapping[int, int], cells: memoryview[int], cell: int) -> int:
    """The value of a cell once the staged changes are committed."""
    return staged[cell] if cell in staged else cells[cell]


class Accounts:
    """The accounts, as one process uses them, while it holds the lock of the table."""

    def __init__(
        self,
        cells: memoryview[int],
        *,
        first: int,
        slot: int,
        staged: dict[int, int],
    ) -> None:
        """`first` is the number of their first cell; `staged` are changes for the next commit, by
        cell."""
        self._cells, self._staged, self._slot = cells, staged, slot
        self._first, self._holds = first, first + ACCOUNTS * _ACCOUNT
        self._found: dict[tuple[int, int], int] = {}
        self._own: dict[int, int] = {}

    def find(self, digest: tuple[int, int]) -> int | None:
        """The record of an account; None if there is none."""
        key, rest = digest
        cells, known = self._cells, self._found.get(digest)
        if known is not None and cells[known] == key and cells[known + _KEY_REST] == rest:
            return known
        number = key % ACCOUNTS
        for _ in range(_MOST_PROBES):
            record = self._first + number * _ACCOUNT
            found = cells[record]
            if found == key and cells[record + _KEY_REST] == rest:
                if len(self._found) >= ACCOUNTS:
                    self._found.clear()
                self._found[digest] = record
                return record
            if not found:
                return None
            number = (number + 1) % ACCOUNTS
        return None

    def claim(
        self,
        digest: tuple[int, int],
        budget: str,
        subject: str,
        *,
        start: int,
        end: int,
        now: float,
    ) -> int | None:
        """A new record for an account; None without room."""
        key, rest = digest
        cells, number = self._cells, key % ACCOUNTS
        for _ in range(_MOST_PROBES):
            record = self._first + number * _ACCOUNT
            if not cells[record] or self._is_free(record, now):
                text = f"{budget}\0{subject}".encode(errors="replace")[:_LONGEST_TEXT]
                padded = text + bytes(-len(text) % 8)
                # The key last: killed in between, it is a record that nobody finds.
                cells[record + _SPENT] = cells[record + _SAVED] = cells[record + _LOADED] = 0
                cells[record + _START], cells[record + _END] = start, end
                cells[record + _LENGTH] = len(text)
                for at in range(0, len(padded), 8):
                    cells[record + _TEXT + at // 8] = int.from_bytes(
                        padded[at : at + 8], "little", signed=True
                    )
                cells[record + _KEY_REST] = rest
                cells[record] = key
                return record
            number = (number + 1) % ACCOUNTS
        return None

    def amounts(self, record: int) -> tuple[int, int]:
        """(spent, held) of an account. Without the lock, they may be of different moments."""
        return self._cells[record + _SPENT], self._cells[record + _HELD]

    def stage_hold(self, record: int, amount: int) -> bool:
        """Hold an amount for a request of this process; returns False without room."""
        if not amount:
            return True
        cells, staged, owner = self._cells, self._staged, self._owner(record)
        own = self._hold_of(record, owner)
        if own is None:
            return False
        staged[record + _HELD] = cells[record + _HELD] + amount
        staged[own + _OWNER] = owner
        staged[own + _AMOUNT] = cells[own + _AMOUNT] + amount  # 0 of a free one
        return True

    def stage_spent(self, record: int, *, held: int, cost: int) -> None:
        """Replace what was held for a request of this process by what it cost."""
        cells, staged = self._cells, self._staged
        staged[record + _SPENT] = cells[record + _SPENT] + cost
        if not held:
            return
        owner = self._owner(record)
        own = self._hold_of(record, owner)
        if own is not None and cells[own + _OWNER] == owner:
            staged[record + _HELD] = max(0, cells[record + _HELD] - held)
            staged[own + _AMOUNT] = max(0, cells[own + _AMOUNT] - held)

    def stage_loaded(self, record: int, amount: int) -> None:
        """Raise what an account has of what was spent elsewhere to this amount."""
        cells, staged = self._cells, self._staged
        if (more := amount - cells[record + _LOADED]) > 0:
            staged[record + _SPENT] = cells[record + _SPENT] + more
            staged[record + _SAVED] = cells[record + _SAVED] + more
            staged[record + _LOADED] = amount

    def spend_holds_of(self, dead: Callable[[int], bool], commit: Callable[[], None]) -> None:
        """Count what processes held that were killed as spent. `dead` is asked for each slot."""
        cells = self._cells
        amounts = cells[self._holds + _AMOUNT : self._holds + _HOLDS * _HOLD : _HOLD].tolist()
        for number in [number for number, amount in enumerate(amounts) if amount]:
            own = self._holds + number * _HOLD
            account, slot = divmod(cells[own + _OWNER] - 1, _SLOTS)
            if not dead(slot):
                continue
            record, amount = self._first + account * _ACCOUNT, cells[own + _AMOUNT]
            self._staged[record + _SPENT] = cells[record + _SPENT] + amount
            self._staged[record + _HELD] = max(0, cells[record + _HELD] - amount)
            self._staged[own + _AMOUNT] = 0
            commit()

    def entries(self) -> list[StoredAccount]:
        """All accounts. It may be called without the lock."""
        cells, found = self._cells, []
        keys = cells[self._first : self._holds : _ACCOUNT].tolist()
        for number in [number for number, key in enumerate(keys) if key]:
            record = self._first + number * _ACCOUNT
            length = cells[record + _LENGTH]
            text = cells[record + _TEXT : record + _ACCOUNT].tobytes()[:length]
            budget, _, subject = text.decode(errors="replace").partition("\0")
            spent, held = self.amounts(record)
            start, end = cells[record + _START], cells[record + _END]
            saved, loaded = cells[record + _SAVED], cells[record + _LOADED]
            if cells[record] != keys[number]:
                continue  # another account took the record meanwhile
            found.append(
                StoredAccount(record, budget, subject, start, end, spent, held, saved, loaded)
            )
        return found

    def set_saved(self, record: int, amount: int) -> None:
        """Record what the ledger has of an account; only the process that writes it does."""
        self._cells[record + _SAVED] = amount

    def _is_free(self, record: int, now: float) -> bool:
        """Whether a record may be reused: nothing is spent or held, as in a missing account; or its
        window has ended, and everything is in the ledger."""
        cells, spent = self._cells, self._after(record + _SPENT)
        return not self._after(record + _HELD) and (
            not spent or (cells[record + _END] <= now and spent == cells[record + _SAVED])
        )

    def _after(self, cell: int) -> int:
        return value_after(self._staged, self._cells, cell)

    def _owner(self, record: int) -> int:
        """What stands for an account and the slot of this process."""
        return (record - self._first) // _ACCOUNT * _SLOTS + self._slot + 1

    def _hold_of(self, record: int, owner: int) -> int | None:
        """The record of what this process holds of an account, or a free one; None without room."""
        known = self._own.get(record)
        # As after the staged changes: another account of them may have taken a record.
        if known is not None and self._after(known + _OWNER) == owner:
            return known
        # The high bits of the product: owners of one slot differ in no low bit.
        number, free = (owner * 0x9E3779B1 & 0xFFFF_FFFF) * _HOLDS >> 32, None
        for _ in range(_MOST_PROBES):
            own = self._holds + number * _HOLD
            stored = self._after(own + _OWNER)
            if stored == owner:
                self._own[record] = own
                return own
            if free is None and not self._after(own + _AMOUNT):
                free = own
            if not stored:
                break
            number = (number + 1) % _HOLDS
        return free
