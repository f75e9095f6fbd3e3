"""The rows of costs: a part of the table in `families`.

Counters of money count whole nano-dollars in the files, and are shown in dollars.
"""

from __future__ import annotations

from nexus.access.prices import TYPES
from nexus.metrics.family import Label, counter, gauge
from nexus.metrics.label_values import BACKEND, BUDGET, KEY, MODEL, SUBJECT, TEAM_OF_KEY

COST = counter(
    "nexus_cost_usd_total",
    "Cost in US dollars. `outcome` is `delivered` for responses, or `retried` for the time of "
    "attempts that failed, which no key is charged.",
    backend=BACKEND,
    model=MODEL,
    type=Label(TYPES),
    outcome=Label(("delivered", "retried")),
)
KEY_COST = counter(
    "nexus_key_cost_usd_total",
    "Cost in US dollars of delivered responses by the client's key; `none` without one.",
    key=KEY,
    team=TEAM_OF_KEY,
)
IMBALANCE = gauge(
    "nexus_cost_imbalance_usd",
    "Cost of delivered responses by backend less that by key, in US dollars. It must be 0.",
    "scrape",
)
UNPRICED = counter(
    "nexus_unpriced_requests_total",
    "Requests whose cost is not known, because no price matches the backend and the model.",
    backend=BACKEND,
    model=MODEL,
)
BUDGET_LIMIT = gauge(
    "nexus_budget_limit_usd",
    "What a budget allows in its present window, in US dollars. At most 200 are shown: "
    "budgets for all, then the subjects that have spent the largest share.",
    "scrape",
    budget=BUDGET,
    subject=SUBJECT,
)
BUDGET_WARN = gauge(
    "nexus_budget_warn_usd",
    "The amount from which a budget counts as nearly spent (`warn`), in US dollars.",
    "scrape",
    budget=BUDGET,
    subject=SUBJECT,
)
BUDGET_SPENT = gauge(
    "nexus_budget_spent_usd",
    "What was spent in the present window, in US dollars.",
    "scrape",
    budget=BUDGET,
    subject=SUBJECT,
)
BUDGET_HELD = gauge(
    "nexus_budget_held_usd",
    "What is held for requests in progress, in US dollars.",
    "scrape",
    budget=BUDGET,
    subject=SUBJECT,
)
BUDGET_RESETS = gauge(
    "nexus_budget_resets_timestamp_seconds",
    "Unix time at which the present window ends; absent for a budget without windows.",
    "scrape",
    budget=BUDGET,
    subject=SUBJECT,
)
BUDGET_REFUSALS = counter(
    "nexus_budget_refusals_total",
    "Requests that a budget refused: it is spent, the rest is held for requests in progress, or "
    "the model has no price.",
    budget=BUDGET,
    reason=Label(("spent", "in_flight", "unpriced")),
)
BUDGET_OVERRUN = counter(
    "nexus_budget_overrun_usd_total",
    "What requests cost beyond what a hard budget held for them, in US dollars.",
    budget=BUDGET,
)
LEDGER_ERRORS = counter(
    "nexus_ledger_write_errors_total",
    "Failed attempts to read or write the ledger of costs and usage, for example on a full disk. "
    "Nothing is lost if a later one succeeds.",
)
PRICES_AGE = gauge(
    "nexus_prices_age_seconds",
    "Seconds since the day that is the version of the prices; absent if they have none.",
    "scrape",
)
