"""Which budgets hold for a request, and in which window."""

import pytest

from nexus.access.budgets import Budgets, BudgetState, UnknownBudget, digest
from nexus.access.callers import Caller
from nexus.config import Config, ConfigError
from nexus.config.budget_records import Budget
from nexus.config.limit_records import Match
from nexus.config.overlay import Overlay
from nexus.fleet.accounts import StoredAccount
from nexus.fleet.limit_table import LimitTable

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


def with_grants(*grants):
    return Budgets([ALL, EACH, OTHERS], grants=grants)


def limits(budgets, caller=ANN, *, now=NOW):
    return [one.limit for one in budgets.accounts(caller, "m", "e", now)]


def test_a_grant_raises_the_limit_of_its_window_and_subject():
    grant = BUDGETS.granted("each", "key ann, model m", 7, NOW)
    budgets = with_grants(grant)
    assert limits(budgets) == [9 * 10**9, 5 * 10**9 + 7]
    assert limits(budgets, Caller(key="bob", team="research")) == [9 * 10**9, 5 * 10**9]
    assert limits(budgets, now=grant.end - 1) == [9 * 10**9, 5 * 10**9 + 7]
    assert limits(budgets, now=grant.end) == [9 * 10**9, 5 * 10**9]
    assert budgets.granted("each", "key ann, model m", 3, NOW).nano == 10
    assert budgets.granted("each", "key ann, model m", 3, grant.end).nano == 3
    shown = [one.summary for one in budgets.states([], NOW)]
    assert [(one.budget, one.subject, one.granted_usd) for one in shown] == [
        ("all", "", "0"),
        ("each", "key ann, model m", "0.000000007"),
    ]
    assert [one.account.budget.name for one in budgets.states([], grant.end)] == ["all"]


def test_the_subject_of_a_grant():
    for name, given, subject in (
        ("all", "", ""),
        ("others", "ann", "user ann"),
        ("others", "user ann", "user ann"),
        ("each", f"key a, b, model {'m' * 64}", f"key a, b, model {'m' * 64}"),
    ):
        assert BUDGETS.granted(name, given, 1, NOW).subject == subject
    for name, given in (("all", "ann"), ("others", ""), ("each", "ann"), ("each", "model m")):
        with pytest.raises(ConfigError):
            BUDGETS.granted(name, given, 1, NOW)
    with pytest.raises(UnknownBudget):
        BUDGETS.granted("none", "", 1, NOW)


def test_subjects_with_long_names_stay_apart_and_fit_into_their_records(tmp_path):
    each = ["key", "user", "team", "model", "endpoint"]
    budgets = Budgets([Budget(name="\u6f22" * 64, usd="1", each=each)])
    table = LimitTable(tmp_path / "limits.db")
    users = ["\U0001f600" * 64 + end for end in "ab"]
    for user in users:
        caller = Caller(key=f"user:{user}", user=user, team="\u6f22" * 99)
        [account] = budgets.accounts(caller, "m" * 99, "chat_completions", NOW)
        record = table.accounts.claim(
            account.digest,
            account.budget.name,
            account.subject,
            start=account.start,
            end=account.end,
            now=NOW,
        )
        table.accounts.stage_spent(record, held=0, cost=len(users))
        table.commit()
        [shown] = budgets.of_caller([BudgetState(account)], caller)
        assert shown.account == account
    stored = table.accounts.entries()
    assert len({one.subject for one in stored}) == len(users)
    for one in stored:  # as the ledger brings them back
        assert table.accounts.find(digest(one.budget, one.subject, one.start)) == one.record
    table.close()


def test_grants_of_windows_that_ended_are_dropped():
    overlay = Overlay(file=Config())
    first, second = (BUDGETS.granted("all", "", nano, NOW) for nano in (1, 2))
    other = BUDGETS.granted("others", "ann", 1, NOW)
    overlay = overlay.with_grant(first, now=NOW).with_grant(other, now=NOW)
    assert overlay.with_grant(second, now=NOW).grants == (other, second)
    later = BUDGETS.granted("all", "", 3, first.end)
    assert overlay.with_grant(later, now=first.end).grants == (later,)
