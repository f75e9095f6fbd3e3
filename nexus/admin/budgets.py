"""The endpoint that shows how the budgets stand."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response

from nexus.access.budgets import BudgetSummary
from nexus.admin.access import require_same_site, require_token
from nexus.admin.context import AdminContext
from nexus.admin.responses import json_response
from nexus.runtime.documents import Document


class BudgetList(Document, frozen=True):
    """Every budget: those for all, then subjects by the share that they have spent."""

    budgets: list[BudgetSummary]


def budget_endpoints(context: AdminContext, *, token: Callable[[], str]) -> Blueprint:
    """`/admin/budgets`. `token` returns the operators' token."""
    blueprint = Blueprint("admin_budgets", __name__, url_prefix="/admin/budgets")
    blueprint.before_request(require_same_site)

    @blueprint.before_request
    def check_token() -> Response | None:
        return require_token(token())

    @blueprint.get("")
    def budgets() -> Response:
        states = context.generation().collector.budget_states()
        return json_response(BudgetList(budgets=[state.summary for state in states]))

    return blueprint
