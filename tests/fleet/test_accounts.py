"""The accounts of budgets in the limits' table."""

import pytest

from nexus.access.budgets import digest
from nexus.fleet import accounts as accounts_module
from nexus.fleet.limit_table import LimitTable

END = 2_000


@pytest.fixture
def tables(tmp_path):
    """The tables of two processes; the second lives while `alive` has its slot."""
    alive = {0, 1}
    made = [
        LimitTable(tmp_path / "limits.db", slot=slot, slots=lambda: 2, lives=alive.__contains__)
        for slot in (0, 1)
    ]
    yield *made, alive
    for table in made:
        table.close()


def claim(table: LimitTable, name: str, *, start: int = 1_000, now: float = 1_500) -> int:
    record = table.accounts.claim(
        digest(name, "", start), name, "key a", start=start, end=start + 1_000, now=now
    )
    assert record is not None
    return record


def hold(table: LimitTable, record: int, amount: int) -> None:
    assert table.acquire()
    assert table.accounts.stage_hold(record, amount)
    table.commit()
    table.release()


def spend(table: LimitTable, record: int, *, held: int, cost: int) -> None:
    assert table.acquire()
    table.accounts.stage_spent(record, held=held, cost=cost)
    table.commit()
    table.release()


def test_what_is_held_becomes_spent(tables):
    one, other, _ = tables
    record = claim(one, "b")
    hold(one, record, 70)
    hold(other, record, 30)
    assert other.accounts.amounts(record) == (0, 100)
    spend(one, record, held=70, cost=50)
    assert other.accounts.amounts(record) == (50, 30)
    spend(other, record, held=30, cost=45)
    [stored] = one.accounts.entries()
    assert stored == (record, "b", "key a", 1_000, 2_000, 95, 0, 0, 0)


def test_what_a_killed_process_held_is_spent_once(tables, tmp_path):
    one, other, alive = tables
    spender = LimitTable(tmp_path / "limits.db", slot=2, lives=alive.__contains__)
    records = [claim(one, name) for name in "bcd"]
    for record in records:
        hold(one, record, 5)
        hold(other, record, 7)
    alive.remove(1)
    for _ in range(2):
        assert spender.acquire()
        spender.spend_holds_of_dead()
        spender.release()
    spender.close()
    assert [one.accounts.amounts(record) for record in records] == [(7, 5)] * 3
    # The next process with that slot finds nothing more.
    assert other.acquire()
    other.clear_slot()
    other.release()
    assert one.accounts.amounts(records[0]) == (7, 5)


def test_the_next_process_of_a_slot_spends_what_the_last_one_held(tables):
    one, _, _ = tables
    record = claim(one, "b")
    hold(one, record, 5)
    assert one.acquire()
    one.clear_slot()
    one.release()
    assert one.accounts.amounts(record) == (5, 0)


def test_one_change_holds_of_several_accounts(tables):
    one, _, _ = tables
    records = [claim(one, name) for name in "bcdefgh"]
    assert one.acquire()
    for amount, record in enumerate(records, 1):
        assert one.accounts.stage_hold(record, amount)
    one.commit()
    one.release()
    assert [one.accounts.amounts(record)[1] for record in records] == [1, 2, 3, 4, 5, 6, 7]
    for amount, record in enumerate(records, 1):
        spend(one, record, held=amount, cost=0)
    assert [one.accounts.amounts(record) for record in records] == [(0, 0)] * 7


def test_a_change_does_not_give_one_record_of_holds_to_two_accounts(tables, monkeypatch):
    """In a table with few records, the accounts of a change take each other's idle ones."""
    one, other, _ = tables
    monkeypatch.setattr(accounts_module, "_HOLDS", 4)
    monkeypatch.setattr(accounts_module, "_MOST_PROBES", 4)
    shared, *keys = records = [claim(one, name) for name in "abcdefghi"]
    for turn in range(50):
        for table in (one, other):
            order = [keys[turn % len(keys)], shared]
            for pair in (order, order[::-1]):
                assert table.acquire()
                for record in pair:
                    assert table.accounts.stage_hold(record, 5)
                table.commit()
                table.release()
                for record in pair:
                    spend(table, record, held=5, cost=1)
        assert [one.accounts.amounts(record)[1] for record in records] == [0] * len(records)


def test_holds_of_all_accounts_and_slots_have_room(tmp_path):
    """2,000 accounts in 8 slots: their records are spread over the table."""
    tables = [LimitTable(tmp_path / "limits.db", slot=slot, slots=lambda: 8) for slot in range(8)]
    for number in range(2000):
        record = claim(tables[0], str(number))
        for table in tables if number < 1000 else tables[:4]:
            hold(table, record, 1)
    assert sum(entry.held for entry in tables[0].accounts.entries()) == 1000 * 8 + 1000 * 4
    for table in tables:
        table.close()


def test_the_process_that_spends_for_others_spends_for_its_own_slot(tables):
    """It may have got the slot of a worker that was killed."""
    one, other, _ = tables
    record = claim(one, "b")
    hold(one, record, 5)
    hold(other, record, 7)
    assert one.acquire()
    one.spend_holds_of_dead()
    one.release()
    assert one.accounts.amounts(record) == (5, 7)


def test_a_change_does_not_reuse_an_account_that_it_changes(tables, monkeypatch):
    """Its window may end between the two."""
    one, _, _ = tables
    monkeypatch.setattr(accounts_module, "ACCOUNTS", 1)
    record = claim(one, "b", start=1_000)
    late = {"start": 2_000, "end": 3_000, "now": 2_500.0}
    assert one.acquire()
    one.accounts.stage_hold(record, 5)
    assert one.accounts.claim(digest("c", "", 2_000), "c", "", **late) is None
    one.release()
    assert one.acquire()
    assert one.accounts.claim(digest("c", "", 2_000), "c", "", **late) == record
    one.release()


def test_a_change_that_was_not_committed_is_forgotten(tables):
    one, other, _ = tables
    record = claim(one, "b")
    assert one.acquire()
    one.accounts.stage_hold(record, 5)
    one.release()
    hold(other, record, 1)
    hold(one, record, 2)
    assert one.accounts.amounts(record) == (0, 3)


def test_the_accounts_of_past_windows_make_room(tables, monkeypatch):
    one, _, _ = tables
    monkeypatch.setattr(accounts_module, "ACCOUNTS", 4)
    held = claim(one, "held")
    hold(one, held, 1)
    records = set()
    for name in "abc":
        records.add(record := claim(one, name))
        spend(one, record, held=0, cost=7)
        one.accounts.set_saved(record, 7)
    unsaved = min(records)
    spend(one, unsaved, held=0, cost=1)
    full = one.accounts.claim(digest("x", "", 0), "x", "", start=0, end=9, now=1_999)
    assert full is None
    again = set()
    for name in "de":
        again.add(record := claim(one, name, start=2_000, now=2_000))
        spend(one, record, held=0, cost=7)
    assert again == records - {unsaved}  # that of a request in progress stays, too
    one.accounts.set_saved(unsaved, 8)
    assert claim(one, "f", start=2_000, now=2_000) == unsaved
    assert one.accounts.amounts(held) == (0, 1)


def test_an_account_without_spending_leaves_room_for_another(tables):
    """Whoever makes up models would fill the table, with a budget for each model."""
    one, other, _ = tables
    held, spent = claim(one, "held"), claim(one, "spent")
    hold(one, held, 7)
    spend(one, spent, held=0, cost=9)
    for number in range(2 * accounts_module.ACCOUNTS):
        claim(other, f"unspent {number}")
    assert [one.accounts.amounts(record) for record in (held, spent)] == [(0, 7), (9, 0)]
