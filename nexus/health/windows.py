"""The last hour and day of each backend, from samples of the counters.

One sample a minute covers the hour, one every quarter of an hour the day.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields

from nexus.fleet.windows import RecentOutcomes, Trouble, Window
from nexus.metrics import families
from nexus.metrics.collector import MetricsSnapshot

_MINUTE_S, _QUARTER_S, _HOUR_S, _DAY_S = 60.0, 900.0, 3600.0, 86400.0
_TROUBLE_S = 600.0
_MIN_UNANSWERED, _MIN_REFUSED = 3, 5

_REFUSED = frozenset({"invalid_request", "model_not_found"})
_UNANSWERED = frozenset({"client_disconnect", "timeout", "idle_timeout", "deadline_exceeded"})
_NOT_COUNTED = frozenset(
    {"invalid_request", "client_disconnect", "rate_limited", "other", "shutdown"}
)


@dataclass(slots=True)
class _Counts:
    """What was counted of a backend since the gateway's start, or within a window."""

    ok: float = 0.0
    failed: float = 0.0
    refused: float = 0.0
    unanswered: float = 0.0
    first_tokens: float = 0.0
    first_tokens_s: float = 0.0

    def since(self, before: _Counts) -> _Counts:
        return _Counts(
            *(getattr(self, field.name) - getattr(before, field.name) for field in fields(self))
        )


_Sample = tuple[float, dict[str, _Counts]]


class Windows:
    """Keeps the samples of one gateway's run. Times are monotonic seconds."""

    def __init__(self, *, started: float) -> None:
        """The counters were zero at `started`."""
        self._minutes: deque[_Sample] = deque([(started, {})], maxlen=int(_HOUR_S / _MINUTE_S) + 2)
        self._quarters: deque[_Sample] = deque([(started, {})], maxlen=int(_DAY_S / _QUARTER_S) + 2)

    def sample(self, metrics: MetricsSnapshot, *, now: float) -> dict[str, RecentOutcomes]:
        """Sample the counters; returns the outcomes of each backend by its label value."""
        counts = _counts(metrics)
        for samples, apart_s in ((self._minutes, _MINUTE_S), (self._quarters, _QUARTER_S)):
            if now - samples[-1][0] >= apart_s:
                samples.append((now, counts))
        hour, day = _before(self._minutes, now - _HOUR_S), _before(self._quarters, now - _DAY_S)
        recent = _before(self._minutes, now - _TROUBLE_S)
        return {
            label: RecentOutcomes(
                last_hour=_window(label, backend, hour, now),
                last_day=_window(label, backend, day, now),
                trouble=trouble_of(backend.since(recent[1].get(label, _Counts()))),
            )
            for label, backend in counts.items()
        }


def trouble_of(counts: _Counts) -> Trouble | None:
    """Why a backend served nothing, if it got enough requests to tell."""
    if counts.ok:
        return None
    if counts.unanswered >= _MIN_UNANSWERED and not counts.first_tokens:
        return "hangs"
    return "refuses_all" if counts.refused >= _MIN_REFUSED else None


def _counts(metrics: MetricsSnapshot) -> dict[str, _Counts]:
    by_backend: dict[str, _Counts] = {}
    for labels, value in metrics.samples(families.ATTEMPTS):
        counts, outcome = by_backend.setdefault(labels["backend"], _Counts()), labels["outcome"]
        if outcome == "ok":
            counts.ok += value
        elif outcome not in _NOT_COUNTED:
            counts.failed += value
        if outcome in _REFUSED:
            counts.refused += value
        elif outcome in _UNANSWERED:
            counts.unanswered += value
    for backend, value in metrics.by("backend", families.TTFT, "_count").items():
        by_backend.setdefault(backend, _Counts()).first_tokens = value
    for backend, value in metrics.by("backend", families.TTFT, "_sum").items():
        by_backend.setdefault(backend, _Counts()).first_tokens_s = value
    return by_backend


def _before(samples: deque[_Sample], moment: float) -> _Sample:
    """The latest sample that is not after `moment`; the oldest if all are."""
    return next((sample for sample in reversed(samples) if sample[0] <= moment), samples[0])


def _window(label: str, now_counts: _Counts, before: _Sample, now: float) -> Window:
    counts = now_counts.since(before[1].get(label, _Counts()))
    attempts = counts.ok + counts.failed
    return Window(
        seconds=int(now - before[0]),
        attempts=int(attempts),
        error_rate=round(counts.failed / attempts, 4) if attempts else None,
        success_rate=round(counts.ok / attempts, 4) if attempts else None,
        average_ttft_ms=round(counts.first_tokens_s / counts.first_tokens * 1000, 3)
        if counts.first_tokens
        else None,
    )
