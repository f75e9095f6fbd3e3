"""The response of `/v1/key`, which describes the caller's own key."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from nexus.access.budgets import BudgetSummary
from nexus.access.callers import NONE, Caller


def own_key(caller: Caller, budgets: Iterable[BudgetSummary] = ()) -> dict[str, Any]:
    """The caller's key without its secret; ids are null for callers without a key."""
    expires = caller.expires
    return {
        "object": "key",
        "id": None if caller.key == NONE or caller.user else caller.key,
        "user": caller.user or None,
        "name": caller.name or None,
        "team": None if caller.team == NONE else caller.team,
        "models": [list(globs) for globs in caller.models],
        "endpoints": [sorted(names) for names in caller.endpoints],
        "budgets": [msgspec.to_builtins(budget) for budget in budgets],
        "expires": None if expires is None else datetime.fromtimestamp(expires, UTC).isoformat(),
    }
