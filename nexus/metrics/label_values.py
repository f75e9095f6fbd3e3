"""The buckets of histograms, and the values that labels can have, for the tables of families."""

from __future__ import annotations

from typing import get_args

from nexus.access.callers import USER
from nexus.access.limits import DIMENSIONS
from nexus.config.fields import TranslationName
from nexus.errors import ERROR_TYPES, status_labels
from nexus.metrics.family import Label
from nexus.metrics.labels import NONE, OTHER, RETIRED, UNKNOWN

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TTFT_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5,
    0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
"""OpenTelemetry's boundaries for `gen_ai.server.time_to_first_token`, and some above."""
TPOT_SECONDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 10.0, 120.0, 300.0,
)  # fmt: skip
"""OpenTelemetry's boundaries for `gen_ai.server.time_per_output_token`, and some above."""
OVERHEAD_SECONDS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5,
)  # fmt: skip
LAG_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
QUEUE_SECONDS = (0.005, 0.01, 0.025, 0.05, *SECONDS)
DECISION_SECONDS = (
    0.000005, 0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01,
)  # fmt: skip
PROBE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, *SECONDS)
UPLOAD_BYTES_BUCKETS = tuple(float(4**exponent) for exponent in range(6, 15))
"""From 4 KiB to 256 MiB."""
TOKENS = (10, 50, 100, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000)

EXCLUSION_REASONS = (
    "unknown", "unhealthy", "draining", "dialect_not_spoken", "capability_mismatch",
    "privacy_restricted",
    "tier_below_minimum", "budget_exhausted", "circuit_open", "busy", "at_capacity",
)  # fmt: skip
"""Why a backend that has the model of a request is not considered for it."""
REJECTION_REASONS = (
    "not_found", "method_not_allowed", "bad_request", "origin_refused", "head_too_slow",
    "head_too_large", "internal",
)  # fmt: skip
"""Why a request reached no endpoint; `internal` if the code of one failed."""

TRANSLATION_NAMES = get_args(TranslationName)
"""The names of the translations between the APIs of clients and backends."""

MODEL = Label((UNKNOWN, OTHER, RETIRED), names="models")
BACKEND = Label((NONE, OTHER, RETIRED), names="backends")
BACKEND_NOW = Label((OTHER,), names="backends")
"""Backends of the present fleet."""
STATUS = Label(tuple(sorted(status_labels())))
ERROR_TYPE = Label(tuple(sorted(ERROR_TYPES)))
LABEL_KIND = Label(("model", "backend"))
FOLLOWS = Label(("",))
"""A label whose value follows from those before it."""

KEY = Label((NONE, UNKNOWN, OTHER, USER), names="keys")
TEAM = Label((NONE, UNKNOWN, OTHER), names="teams")
LIMIT = Label(names="limits")
BUDGET = Label(names="budgets")
SUBJECT = Label(("",), names="subjects")
DIMENSION = Label(DIMENSIONS)
TEAM_OF_KEY = Label(("",))
"""It follows from the key."""
