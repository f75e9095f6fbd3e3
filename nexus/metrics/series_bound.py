"""The most series that each family can have with a configuration, whatever clients do."""

from __future__ import annotations

from nexus.access.budgets import MAX_SUBJECTS
from nexus.config import Config
from nexus.config.budget_records import MAX_BUDGETS
from nexus.config.limit_records import MAX_LIMITS
from nexus.fleet.load_table import SLOTS
from nexus.metrics.families import FAMILIES


def series_bound(config: Config, *, endpoints: int) -> dict[str, int]:
    """Return the bound of each family by its name, for a gateway with so many endpoints.

    Backends and models may be added at run time, up to `[metrics] max_backends` and `max_models`.
    """
    names = config.metrics
    users = names.max_keys + 1  # the key `user` with each team, without one, and with `other`
    return {
        family.name: family.series_bound(
            {
                "models": names.max_models,
                "backends": names.max_backends,
                "endpoints": endpoints,
                "slots": SLOTS,
                "keys": names.max_keys + (users if config.auth.identity.peers else 0),
                "teams": names.max_keys,
                "limits": MAX_LIMITS + 3,  # and those of keys, of teams, and on counting tokens
                "budgets": MAX_BUDGETS + 1,  # and [routing.budget]
                "subjects": MAX_SUBJECTS,
            }
        )
        for family in FAMILIES
    }
