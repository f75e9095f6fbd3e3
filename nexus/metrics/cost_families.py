"""The rows of costs: a part of the table in `families`.

Counters of money count whole nano-dollars in the files, and are shown in dollars.
"""

from __future__ import annotations

from nexus.access.prices import TYPES
from nexus.metrics.family import Label, counter, gauge
from nexus.metrics.label_values import BACKEND, KEY, MODEL, TEAM_OF_KEY

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
    "Cost in US dollars of delivered responses by the client's key. Only with [auth].",
    key=KEY,
    team=TEAM_OF_KEY,
)
UNPRICED = counter(
    "nexus_unpriced_requests_total",
    "Requests whose cost is not known, because no price matches the backend and the model.",
    backend=BACKEND,
    model=MODEL,
)
PRICES_AGE = gauge(
    "nexus_prices_age_seconds",
    "Seconds since the day that is the version of the prices; absent if they have none.",
    "scrape",
)
