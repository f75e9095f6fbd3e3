"""The ledger: what it adds up over generations, restarts, and failed writes."""

import sqlite3

import pytest

from nexus.fleet.accounts import StoredAccount
from nexus.health.ledger import Ledger
from nexus.metrics.usage import UsageKey

KEY = UsageKey("a", "team", "m", "backend", "chat_completions")
OTHER = UsageKey("b", "none", "m", "backend", "chat_completions")
HOUR = 3600


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def account(name, spent, *, saved=0, loaded=0, end=9_000) -> StoredAccount:
    return StoredAccount(0, name, "key a", 5, end, spent, 0, saved, loaded)


def everything(ledger, by=()):
    return ledger.report(by, since=None, until=None)


def test_counters_are_added_up_by_hour(ledger):
    ledger.write("one", {KEY: (1, 10, 2, 5, 100)}, [], now=10)
    ledger.write("one", {KEY: (3, 30, 2, 9, 300), OTHER: (1, 1, 0, 1, 7)}, [], now=HOUR + 5)
    ledger.write("one", {KEY: (3, 30, 2, 9, 300), OTHER: (1, 1, 0, 1, 7)}, [], now=HOUR + 6)
    assert everything(ledger, ["key"]) == [("a", 3, 30, 2, 9, 300), ("b", 1, 1, 0, 1, 7)]
    assert everything(ledger, ["hour"]) == [(0, 1, 10, 2, 5, 100), (HOUR, 3, 21, 0, 5, 207)]
    assert ledger.report([], since=HOUR, until=2 * HOUR) == [(3, 21, 0, 5, 207)]
    assert ledger.report(["team", "model"], since=0, until=HOUR) == [
        ("team", "m", 1, 10, 2, 5, 100)
    ]
    assert ledger.report([], since=2 * HOUR, until=None) == []


def test_a_new_ledger_process_continues_where_the_last_one_ended(tmp_path):
    path = tmp_path / "ledger.sqlite"
    for requests in (1, 2, 2):
        ledger = Ledger(path)
        ledger.write("one", {KEY: (requests, 0, 0, 0, 10 * requests)}, [], now=5)
        ledger.close()
    ledger = Ledger(path)
    # The counters of a new generation start at zero.
    ledger.write("two", {KEY: (1, 0, 0, 0, 10)}, [], now=5)
    assert everything(ledger) == [(3, 0, 0, 0, 30)]
    ledger.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_windows_are_kept_until_they_end(ledger):
    ledger.write("one", {}, [account("b", 7), account("old", 3, end=50)], now=5)
    ledger.write("one", {}, [account("b", 9, saved=7), account("same", 4, saved=4)], now=6)
    assert ledger.windows("two", now=100) == [("b", "key a", 5, 9_000, 9)]
    assert len(ledger.windows("two", now=0)) == 2


def test_what_could_not_be_written_is_written_later(ledger):
    usage, accounts = {KEY: (1, 0, 0, 0, 10)}, [account("b", 7)]
    ledger._database.execute("PRAGMA query_only = 1")
    for _ in range(3):
        with pytest.raises(sqlite3.Error):
            ledger.write("one", usage, accounts, now=5)
    ledger._database.execute("PRAGMA query_only = 0")
    ledger.write("one", usage, accounts, now=5)
    assert everything(ledger) == [(1, 0, 0, 0, 10)]
    assert ledger.windows("two", 0) == [("b", "key a", 5, 9_000, 7)]


def test_what_generations_spend_adds_up_in_any_order(ledger):
    ledger.write("one", {}, [account("b", 7)], now=5)
    ledger.write("two", {}, [account("b", 17, loaded=7)], now=6)
    ledger.write("one", {}, [account("b", 9, saved=7)], now=7)
    ledger.write("two", {}, [account("b", 18, saved=17, loaded=7)], now=8)
    ledger.write("two", {}, [account("b", 18, saved=17, loaded=7)], now=8)
    found = [("b", "key a", 5, 9_000, spent) for spent in (20, 11, 9)]
    assert [ledger.windows(name, 0)[0] for name in ("three", "one", "two")] == found


def test_a_generation_that_is_over_is_forgotten(ledger):
    ledger.write("one", {KEY: (1, 0, 0, 0, 10)}, [account("b", 7)], now=5)
    late = 5 + 31 * 86400
    ledger.write("two", {KEY: (1, 0, 0, 0, 10)}, [account("b", 8, saved=7, loaded=7)], now=late)
    assert everything(ledger) == [(2, 0, 0, 0, 20)]
    assert ledger.windows("one", 0) == [("b", "key a", 5, 9_000, 8)], "as if it was another one"
