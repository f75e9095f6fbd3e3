"""Grants that operators make to budgets while the gateway runs."""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec

from nexus.access.budgets import Budgets, BudgetSummary, UnknownBudget
from nexus.access.callers import NONE
from nexus.access.prices import usd
from nexus.admin.budgets import NewGrant
from nexus.config import ConfigError
from nexus.config.access_records import ENDPOINTS
from nexus.config.cost_records import nano_usd
from nexus.fleet.accounts import ACCOUNTS
from nexus.health.change_files import ChangeFiles
from nexus.health.monitor import FleetMonitor
from nexus.health.publisher import Publisher
from nexus.routing.table import RouteTable
from nexus.runtime.text import suggest

log = logging.getLogger("nexus.health")

_HINTS = {
    "key": "`nexus keys list` shows them.",
    "model": "`nexus models` shows them.",
    "user": "[auth.identity] from names no proxy that signs users in.",
}


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
        self._changes.claim()
        before, now = self._monitor.fleet.overlay, time.time()
        budgets = Budgets.of(before.config(), before.grants)
        if budgets is None:
            raise UnknownBudget(given.budget)
        grant = budgets.granted(given.budget, given.subject, nano, now, self._counted_as)
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

    def _counted_as(self, kind: str, value: str) -> str:
        """The name under which requests of a key, user, team, model, or endpoint count.

        Raises `ConfigError` if it does not exist and has cost nothing. If a proxy signs users in,
        only the proxy knows who exists.
        """
        config, snapshot = self._monitor.fleet.config, self._publisher.snapshot
        if kind == "model" and snapshot is not None:
            table = RouteTable(snapshot)
            value = table.resolve(value)
            if table.candidates_for(value):
                return value
            names = list(table.candidates)
        elif kind == "endpoint":
            names = [*ENDPOINTS, *(one.label for one in config.endpoints.custom)]
        elif kind == "team":
            names = [NONE, *(team.name for team in config.teams)]
        else:
            names = [NONE, *(key.id for key in config.keys if kind == "key")]
        from_proxy = kind == "user" or (kind == "key" and value.startswith("user:"))
        if value in names or (from_proxy and config.auth.identity.peers):
            return value
        states = self._publisher.generation.context.collector.budget_states()
        spent = [f", {one.account.subject}, " for one in states if one.spent]
        if any(f", {kind} {value}, " in subject for subject in spent):
            return value
        hint = suggest(value, names) or _HINTS.get(kind, f"known are {', '.join(names)}.")
        raise ConfigError(f"There is no {kind} {value[:200]!r}; {hint}")
