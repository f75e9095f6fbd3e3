"""The rows of keys, teams, limits and the request log: a part of the table in `families`."""

from __future__ import annotations

from nexus.metrics.family import Label, counter, gauge
from nexus.metrics.label_values import (
    DIMENSION,
    FOLLOWS,
    KEY,
    LIMIT,
    MODEL,
    STATUS,
    TEAM,
    TEAM_OF_KEY,
)

KEY_REQUESTS = counter(
    "nexus_key_requests_total",
    "Finished requests by the client's key; `unknown` if it is not known. Only with [auth].",
    key=KEY,
    team=TEAM_OF_KEY,
    status=STATUS,
)
KEY_TOKENS = counter(
    "nexus_key_tokens_total",
    "Tokens of requests whose usage is known, by the client's key and by type.",
    key=KEY,
    team=TEAM_OF_KEY,
    type=Label(("prompt", "completion")),
)
TEAM_REQUESTS = counter(
    "nexus_team_requests_total",
    "Finished requests by the team of the client's key.",
    team=TEAM,
    model=MODEL,
    status=STATUS,
)
KEY_REFUSALS = counter(
    "nexus_key_refusals_total",
    "Requests that were refused because of who sent them, lists of models included.",
    key=KEY,
    team=TEAM_OF_KEY,
    reason=Label(
        (
            "invalid",
            "expired",
            "blocked",
            "ambiguous",
            "endpoint",
            "model",
            "requests",
            "tokens",
            "parallel",
            "budget",
        )
    ),
)
KEY_INFO = gauge(
    "nexus_key_info",
    "The name and the team of each key; always 1.",
    "health",
    key=KEY,
    name=FOLLOWS,
    team=FOLLOWS,
)
KEYS = gauge(
    "nexus_keys", "Keys by state.", "health", state=Label(("active", "expired", "blocked"))
)
LIMIT_LEVEL = gauge(
    "nexus_limit_level",
    "The share of a limit that is left, from 0 to 1; of the 50 that have the least left.",
    "scrape",
    limit=LIMIT,
    subject=FOLLOWS,
    dimension=DIMENSION,
)
LIMIT_REFUSALS = counter(
    "nexus_limit_refusals_total",
    "Requests that a limit refused, by the limit with the longest wait.",
    limit=LIMIT,
    dimension=DIMENSION,
)
LIMIT_SHADOW_REFUSALS = counter(
    "nexus_limit_shadow_refusals_total",
    "Requests that a limit with `shadow = true` would have refused.",
    limit=LIMIT,
    dimension=DIMENSION,
)
LIMIT_OVERRUN = counter(
    "nexus_limit_overrun_tokens_total",
    "Tokens that requests used beyond what was reserved for them, by limit.",
    limit=LIMIT,
)
LIMIT_RETURNED = counter(
    "nexus_limit_returned_tokens_total",
    "Tokens that were reserved and not used, by limit.",
    limit=LIMIT,
)
LIMIT_UNTRACKED = counter(
    "nexus_limit_untracked_total",
    "Levels that a request was admitted without, because their table is full.",
)
LIMIT_LOCK_MISSES = counter(
    "nexus_limit_lock_misses_total",
    "Requests that were admitted without their limits, or refused with 503, because another "
    "process held the lock on the levels for too long.",
)
REQUEST_LOG_LINES = counter(
    "nexus_request_log_lines_total",
    "Lines of the request log: `written`, or `lost`, because the file or the journal did not take "
    "them. Only with [request_log].",
    result=Label(("written", "lost")),
)
