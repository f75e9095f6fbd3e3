"""The response of `/v1/key`, which describes the caller's own key."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from nexus.access.budgets import BudgetSummary
from nexus.access.callers import NONE, Caller
from nexus.access.limit_levels import LimitLevel


def describe_key(
    caller: Caller, levels: Iterable[LimitLevel], budgets: Iterable[BudgetSummary]
) -> dict[str, Any]:
    """The caller's key without its secret, and the levels of its limits and budgets.

    Ids are null for callers without a key.
    """
    expires = caller.expires
    return {
        "object": "key",
        "id": None if caller.key == NONE or caller.user else caller.key,
        "user": caller.user or None,
        "name": caller.name or None,
        "team": None if caller.team == NONE else caller.team,
        "models": [list(globs) for globs in caller.models],
        "endpoints": [sorted(names) for names in caller.endpoints],
        "priority": "high" if caller.may_go_first else "normal",
        "budgets": [msgspec.to_builtins(budget) for budget in budgets],
        "expires": None if expires is None else datetime.fromtimestamp(expires, UTC).isoformat(),
        "limits": [_limit(level) for level in levels],
    }


def _limit(level: LimitLevel) -> dict[str, Any]:
    counter = level.counter
    limit = counter.limit
    return {
        "name": limit.name,
        "dimension": counter.dimension,
        "subject": counter.subject or None,
        "model": limit.match.model,
        "endpoint": limit.match.endpoint,
        "rate": counter.rate or None,
        "capacity": counter.burst,
        "used": level.used,
        "left": level.left,
        "full_in_seconds": round(level.full_in_s, 3),
        "shadow": limit.shadow,
    }
