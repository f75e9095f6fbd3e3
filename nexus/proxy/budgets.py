"""Budgets in the limits' table: held before a backend is chosen, spent when the request ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nexus.access.budgets import Account
from nexus.config.budget_records import Budget
from nexus.errors import RequestFailed
from nexus.fleet.limit_table import LimitTable

_IN_FLIGHT_RETRY_S = "2"


class Hold(msgspec.Struct, frozen=True):
    """What a request holds of an account, in nano-dollars; 0 unless the budget is hard."""

    account: Account
    nano: int = 0


class BudgetRefused(RequestFailed):
    """A budget does not admit the request.

    Attributes:
        budget: Its name.
        reason: Why, as metrics name it.
        blocks_cloud: It only keeps cloud backends from serving the request.
        levels: The limits that would have admitted it.
    """

    blocks_cloud = False
    levels: Sequence[Any] = ()

    def __init__(
        self, fault: str, message: str, *, budget: Budget, reason: str, **more: Any
    ) -> None:
        super().__init__(fault, message, **more)
        self.budget, self.reason = budget.name, reason


def unpriced(budget: Budget, model: str) -> BudgetRefused:
    message = f"The model {model[:200]!r} has no price, which budget '{budget.name}' requires."
    return BudgetRefused("model_unpriced", message, budget=budget, reason="unpriced", param="model")


def _too_little(hold: Hold, *, spent: int, held: int) -> BudgetRefused:
    """The refusal of a request for which too little is left."""
    account = hold.account
    if hold.nano and spent + hold.nano <= account.limit:
        fault, reason = "budget_in_flight", "in_flight"
        headers = {"retry-after": _IN_FLIGHT_RETRY_S}
    else:
        fault, reason, headers = "insufficient_quota", "spent", {"x-should-retry": "false"}
    if account.resets is not None:
        headers["x-nexus-budget-resets"] = account.resets
    message = account.describe(spent=spent, held=held, asked=hold.nano)
    refused = BudgetRefused(
        fault, message, budget=account.budget, reason=reason, headers=headers, kind=fault
    )
    refused.blocks_cloud = account.action == "block_cloud"
    return refused


def stage_holds(
    table: LimitTable, holds: Sequence[Hold], *, before: Sequence[Hold], now: float
) -> None:
    """Stage what a request holds, in the place of what it held `before` of the same accounts.

    One that was held before is not asked for again. Raises `BudgetRefused`, or `RequestFailed` if a
    hard budget has no room in the table.
    """
    for position, hold in enumerate(holds):
        if before and before[position] is hold:
            continue
        account, more = hold.account, hold.nano - (before[position].nano if before else 0)
        record = _record(table, account, now)
        spent, held = (0, 0) if record is None else table.accounts.amounts(record)
        if _refuses(account, more, spent=spent, held=held):
            raise _too_little(hold, spent=spent, held=held)
        if account.budget.mode == "hard" and (
            record is None or not table.accounts.stage_hold(record, more)
        ):
            raise RequestFailed("limits_unavailable", headers={"retry-after": "1"})


def stage_costs(
    table: LimitTable, costs: Sequence[tuple[Hold, int]], now: float
) -> list[tuple[str, int]]:
    """Stage what a request cost, in the place of what it held.

    Returns the name of each hard budget that it cost more than was held, and how much more.
    """
    overruns = []
    for hold, cost in costs:
        record = _record(table, hold.account, now)
        if record is not None:
            table.accounts.stage_spent(record, held=hold.nano, cost=cost)
        if hold.account.budget.mode == "hard" and cost > hold.nano:
            overruns.append((hold.account.budget.name, cost - hold.nano))
    return overruns


def has_room(table: LimitTable, holds: Sequence[Hold], before: Sequence[Hold]) -> bool:
    """Whether more could be held than before."""
    for new, old in zip(holds, before, strict=True):
        if new is old:
            continue
        account, more = new.account, new.nano - old.nano
        record = table.accounts.find(account.digest)
        spent, held = (0, 0) if record is None else table.accounts.amounts(record)
        if _refuses(account, more, spent=spent, held=held):
            return False
    return True


def _refuses(account: Account, more: int, *, spent: int, held: int) -> bool:
    mode = account.budget.mode
    if spent >= account.limit and (mode == "soft" or account.action == "block_all"):
        return True
    return mode == "hard" and more > 0 and spent + held + more > account.limit


def _record(table: LimitTable, account: Account, now: float) -> int | None:
    """The record of an account, made if it is missing; None without room."""
    accounts = table.accounts
    record = accounts.find(account.digest)
    if record is not None:
        return record
    budget, subject = account.budget.name, account.subject
    return accounts.claim(
        account.digest, budget, subject, start=account.start, end=account.end, now=now
    )
