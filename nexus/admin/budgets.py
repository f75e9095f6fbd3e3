"""The endpoints that show how the budgets stand, and grant more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol

import msgspec
from flask import Blueprint, Response

from nexus.access.budgets import BudgetSummary, UnknownBudget
from nexus.admin.admin_blueprint import admin_blueprint, json_body, refuse
from nexus.admin.context import AdminContext
from nexus.admin.responses import json_response
from nexus.config.cost_records import SOME_USD
from nexus.runtime.documents import Document


class BudgetList(Document, frozen=True):
    """Every budget: those for all, then subjects by the share that they have spent."""

    budgets: list[BudgetSummary]


class NewGrant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """More money for the present window of a budget.

    Attributes:
        budget: Its name.
        subject: Whose, as in `/admin/budgets`, such as `key k7f3q2m9x4ta`; empty for all.
        usd: US dollars that are added to its limit, such as "50".
    """

    budget: str
    subject: str = ""
    usd: Annotated[str, msgspec.Meta(extra_json_schema={"pattern": SOME_USD})]


class BudgetAdmin(Protocol):
    """What the health process lets operators do."""

    def grant(self, data: dict[str, Any]) -> BudgetSummary:
        """Add to a budget until its window ends. The fields are those of `NewGrant`.

        Raises `UnknownBudget`, or `ConfigError` if the grant is refused. It holds for every
        request that arrives after the method has returned.
        """


def budget_endpoints(
    context: AdminContext, admin: BudgetAdmin, *, token: Callable[[], str]
) -> Blueprint:
    """The endpoints below `/admin/budgets`. `token` returns the operators' token."""
    blueprint = admin_blueprint("admin_budgets", "/admin/budgets", token)

    @blueprint.get("")
    def budgets() -> Response:
        states = context.generation().collector.budget_states()
        return json_response(BudgetList(budgets=[state.summary for state in states]))

    @blueprint.post("/grants")
    def grant() -> Response:
        return json_response(admin.grant(json_body()), 201)

    refuse(blueprint, UnknownBudget, 404, "unknown_budget", "There is no budget {!r}.")
    return blueprint
