"""Which budgets hold for a request, and in which window."""

from nexus.access.budgets import Budgets
from nexus.access.callers import Caller
from nexus.config.budget_records import Budget
from nexus.config.limit_records import Match
from nexus.fleet.accounts import StoredAccount

NOW = 1_790_000_000.0  # in September 2026
ANN = Caller(key="ann", team="research")
USER = Caller(key="user:Bo, the second", user="Bo, the second", team="research")
ALL = Budget(name="all", usd="9")
EACH = Budget(name="each", usd="5", each=["key", "model"], match=Match(team="res*"))
OTHERS = Budget(name="others", usd="5", each=["user"], match=Match(team="sales"))
BUDGETS = Budgets([ALL, EACH, OTHERS])


def found(caller, *, now=NOW, model="m"):
    return BUDGETS.accounts(caller, model, "chat_completions", now)


def test_all_that_match_hold():
    assert [(one.budget.name, one.subject) for one in found(ANN)] == [
        ("all", ""),
        ("each", "key ann, model m"),
    ]
    assert [one.budget.name for one in found(None)] == ["all"]
    assert [one.limit for one in found(ANN)] == [9 * 10**9, 5 * 10**9]


def test_another_window_is_another_account():
    [now, _], [later, _] = found(ANN), found(ANN, now=NOW + 31 * 86400)
    assert now.end == later.start
    assert now.digest != later.digest
    assert found(ANN)[0] == now
    assert now.resets == "2026-10-01T00:00:00Z"


def test_another_amount_keeps_the_account():
    [other] = Budgets([Budget(name="all", usd="1")]).accounts(None, "m", "e", NOW)
    assert other.digest == found(None)[0].digest


def test_a_caller_sees_its_own_accounts():
    stored = [
        StoredAccount(0, account.budget.name, account.subject, account.start, 0, 7, 2, 0)
        for caller in (ANN, USER, Caller(key="annabel", team="research"))
        for account in found(caller)
    ]
    old = StoredAccount(0, "each", "key ann, model old", 5, 6, 1, 1, 0)  # of an earlier window
    stored += [old, StoredAccount(0, "removed", "", 0, 9, 1, 1, 0)]
    states = list(BUDGETS.states(stored, NOW))
    assert len(states) == 4
    seen = [one.account.subject for one in BUDGETS.of_caller(states, ANN)]
    assert seen == ["", "key ann, model m"]
    seen = [one.account.subject for one in BUDGETS.of_caller(states, USER)]
    assert seen == ["", "key user:Bo, the second, model m"]
    summary = states[0].summary
    assert (summary.limit_usd, summary.spent_usd, summary.left_usd) == (
        "9", "0.000000007", "8.999999991",
    )  # fmt: skip
