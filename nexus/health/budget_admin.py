"""Grants that operators make to budgets while the gateway runs."""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec

from nexus.access.budgets import Budgets, BudgetSummary, UnknownBudget
from nexus.access.prices import usd
from nexus.admin.budgets import NewGrant
from nexus.config import ConfigError
from nexus.config.cost_records import nano_usd
from nexus.fleet.accounts import ACCOUNTS
from nexus.health.change_files import ChangeFiles
from nexus.health.monitor import FleetMonitor
from nexus.health.publisher import Publisher

log = logging.getLogger("nexus.health")


class HealthBudgetAdmin:
    """Implements `BudgetAdmin`."""

    def __init__(
        self, monitor: FleetMonitor, changes: ChangeFiles, *, publisher: Publisher
    ) -> None:
        self._monitor = monitor
        self._changes = changes
        self._publisher = publisher

    def grant(self, data: dict[str, Any]) -> BudgetSummary:
        try:
            given = msgspec.convert(data, NewGrant)
        except msgspec.ValidationError as error:
            raise ConfigError(f"The grant is not valid: {error}.") from error
        if not (nano := nano_usd(given.usd)):
            raise ConfigError(
                f'usd takes more than 0 US dollars as text, such as "50", not {given.usd[:100]!r}.'
            )
        before, now = self._monitor.fleet.overlay, time.time()
        budgets = Budgets.of(before.config(), before.grants)
        if budgets is None:
            raise UnknownBudget(given.budget)
        grant = budgets.granted(given.budget, given.subject, nano, now)
        after = before.with_grant(grant, now=now)
        if len(after.grants) > ACCOUNTS:
            raise ConfigError(f"There are {ACCOUNTS} grants already; raise the budget instead.")
        fleet = self._monitor.new_fleet(after)
        self._changes.write(before, after)
        published = self._monitor.adopt(fleet)
        log.info(
            "budget granted",
            extra={"budget": grant.budget, "subject": grant.subject, "usd": usd(nano)},
        )
        states = self._publisher.generation.context.collector.budget_states()
        for state in states if published else ():
            if (state.account.budget.name, state.account.subject) == (grant.budget, grant.subject):
                return state.summary
        raise ConfigError("The grant is kept, but not published yet; the log says why.")
