"""The accounts go on from what was spent before, whatever happens to the ledger's file."""

import sqlite3
from contextlib import closing
from types import SimpleNamespace

import pytest

from nexus.access.budgets import digest
from nexus.fleet.accounts import StoredAccount
from nexus.fleet.limit_table import LimitTable
from nexus.fleet.state_directory import StateDirectoryHeld
from nexus.health import accounts as accounts_module
from nexus.health.accounts import AccountKeeper
from nexus.health.ledger import FILE, Ledger

END = 4_000_000_000


class Place:
    """A health process's keeper, and a worker, in a directory of state that may be unusable."""

    def __init__(self, path):
        self.path, self.fault, self.failures = path, None, 0
        self.tables, self.keepers = [], []
        self.follow("one")
        self.keeper = self.another_keeper()

    def follow(self, name):
        """Start a new generation."""
        file = self.path / f"{name}.db"
        self.worker = LimitTable(file, slot=1)
        self.tables.append(self.worker)
        context = SimpleNamespace(
            slot_lease=SimpleNamespace(
                open_limit_table=lambda: LimitTable(file, slot=0), generation=None
            ),
            recorder=SimpleNamespace(ledger_failed=self.count_failure),
        )
        self.generation = SimpleNamespace(context=context, path=SimpleNamespace(name=name))

    def another_keeper(self):
        self.keepers.append(AccountKeeper(self, SimpleNamespace(claim=self.claim, path=self.path)))
        return self.keepers[-1]

    def close(self):
        for one in (*self.keepers, *self.tables):
            one.close()

    def claim(self):
        if self.fault is not None:
            raise self.fault
        return self.path

    def count_failure(self):
        self.failures += 1

    def spend(self, cost, name="b"):
        """A request of a worker, as it is settled."""
        accounts, key = self.worker.accounts, digest(name, "", 5)
        assert self.worker.acquire()
        record = accounts.find(key)
        if record is None:
            record = accounts.claim(key, name, "", start=5, end=END, now=6)
        accounts.stage_spent(record, held=0, cost=cost)
        self.worker.commit()
        self.worker.release()

    def spent(self):
        """By name, as workers see it; each account once."""
        entries = self.worker.accounts.entries()
        found = {one.budget: one.spent for one in entries}
        assert len(found) == len(entries)
        return found

    def written(self):
        """By name, as the file has it."""
        with closing(sqlite3.connect(self.path / FILE)) as database:
            return dict(database.execute("SELECT budget, spent FROM windows"))


@pytest.fixture
def place(tmp_path):
    """Earlier runs have spent 100 of one budget, and 7 of another."""
    ledger = Ledger(tmp_path / FILE)
    before = LimitTable(None)
    for name, amount in (("b", 100), ("c", 7)):
        record = before.accounts.claim(digest(name, "", 5), name, "", start=5, end=END, now=6)
        before.accounts.stage_spent(record, held=0, cost=amount)
        before.commit()
    ledger.write("before", {}, before.accounts.entries(), now=6)
    ledger.close()
    before.close()
    place = Place(tmp_path)
    yield place
    place.close()


def full(*_args, **_more):
    raise sqlite3.OperationalError("database or disk is full")


def test_a_request_before_the_ledger_is_loaded_is_in_the_same_account(place):
    place.spend(3)
    assert place.keeper.persist()
    place.spend(4)
    assert place.keeper.persist()
    assert place.spent() == place.written() == {"b": 107, "c": 7}


def test_a_ledger_that_can_be_opened_later_keeps_what_earlier_runs_spent(place):
    place.fault = PermissionError("not yours")
    assert not place.keeper.persist()
    assert place.worker.ready, "requests do not wait for it"
    place.spend(3)
    assert not place.keeper.persist()
    assert (place.spent(), place.failures) == ({"b": 3}, 2)
    place.fault = None
    assert place.keeper.persist()
    assert place.spent() == place.written() == {"b": 103, "c": 7}


def test_a_health_process_that_is_killed_while_it_loads(place, monkeypatch):
    def killed(*_args, **_more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LimitTable, "set_ready", killed)
        with pytest.raises(KeyboardInterrupt):
            place.keeper.persist()
    assert place.spent() == {"b": 100, "c": 7}
    assert not place.worker.ready
    assert place.another_keeper().persist()
    assert place.spent() == {"b": 100, "c": 7}


def test_a_new_generation_goes_on_while_the_ledger_cannot_be_written(place, monkeypatch):
    assert place.keeper.persist()
    place.spend(3)
    with monkeypatch.context() as patch:
        patch.setattr(accounts_module.Ledger, "write", full)
        assert not place.keeper.persist()
        place.follow("two")
        assert not place.keeper.persist()
        assert place.worker.ready, "requests do not wait for the disk"
        place.spend(5)
        assert not place.keeper.persist()
        assert place.spent() == {"b": 108, "c": 7}
    assert place.written() == {"b": 100, "c": 7}
    assert place.keeper.persist()
    assert place.spent() == place.written() == {"b": 108, "c": 7}


def test_what_another_gateway_spends_counts_while_it_has_the_ledger(place):
    other = Ledger(place.path / FILE)
    place.fault = StateDirectoryHeld("another gateway uses it")
    assert not place.keeper.persist()
    place.spend(3)
    assert (place.spent(), place.written()) == ({"b": 103, "c": 7}, {"b": 100, "c": 7})
    other.write("other", {}, [StoredAccount(0, "b", "", 5, END, 150, 0, 100, 100)], now=6)
    other.close()
    assert not place.keeper.persist()
    assert place.spent() == {"b": 153, "c": 7}
    place.fault = None
    assert place.keeper.persist()
    assert place.spent() == place.written() == {"b": 153, "c": 7}


def test_a_new_generation_before_the_ledger_could_be_opened(place):
    place.fault = PermissionError("not yours")
    assert not place.keeper.persist()
    place.spend(3)
    place.follow("two")
    assert not place.keeper.persist()
    place.spend(5)
    assert place.spent() == {"b": 8}
    place.fault = None
    assert place.keeper.persist()
    assert place.spent() == place.written() == {"b": 108, "c": 7}


def test_two_new_generations_while_the_ledger_cannot_be_written(place, monkeypatch):
    assert place.keeper.persist()
    place.spend(50)
    with monkeypatch.context() as patch:
        patch.setattr(accounts_module.Ledger, "write", full)
        for name, cost in (("two", 1000), ("three", 7)):
            assert not place.keeper.persist()
            place.follow(name)
            assert not place.keeper.persist()
            assert place.worker.ready
            place.spend(cost)
        assert place.spent() == {"b": 1157, "c": 7}
    assert place.keeper.persist()
    assert place.spent() == place.written() == {"b": 1157, "c": 7}


def test_a_health_process_that_is_killed_with_a_generation_unwritten(place, monkeypatch):
    """The ledger lacks what only that process knew to be unwritten; the budget has it."""
    assert place.keeper.persist()
    place.spend(50)
    with monkeypatch.context() as patch:
        patch.setattr(accounts_module.Ledger, "write", full)
        place.follow("two")
        assert not place.keeper.persist()
    place.spend(7)
    assert place.another_keeper().persist()
    assert (place.spent(), place.written()) == ({"b": 157, "c": 7}, {"b": 107, "c": 7})


def test_a_gateway_that_gets_the_ledger_back_counts_what_another_one_wrote(place):
    assert place.keeper.persist()
    place.spend(1)
    assert place.keeper.persist()
    place.keeper.close()
    other = Ledger(place.path / FILE)
    other.write("other", {}, [StoredAccount(0, "b", "", 5, END, 1101, 0, 101, 101)], now=6)
    other.close()
    place.spend(2)
    assert place.another_keeper().persist()
    assert place.spent() == place.written() == {"b": 1103, "c": 7}


def test_changes_are_written_while_another_process_has_the_lock(place):
    assert place.keeper.persist()
    place.spend(3)
    assert place.worker.acquire()
    place.follow("two")
    assert place.keeper.persist()
    assert place.written() == {"b": 103, "c": 7}
