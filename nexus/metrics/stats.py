"""`/v1/stats`: the figures of `/metrics`, from the same reading, under the names that people gave their models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from nexus.fleet.circuits import STATES
from nexus.fleet.records import Snapshot
from nexus.fleet.windows import RecentOutcomes, Window
from nexus.metrics import families
from nexus.metrics.collector import MetricsSnapshot
from nexus.metrics.exposition import Labels


def stats(
    reading: MetricsSnapshot,
    snapshot: Snapshot | None,
    *,
    uptime_s: float,
    lately: Mapping[str, RecentOutcomes],
) -> dict[str, Any]:
    """Totals, then the same requests by backend and by model; each sum is the total.

    `lately`: how each backend did in the last hour and day, by its label value.
    """
    requests = reading.samples(families.REQUESTS.name)
    success = sum(int(value) for labels, value in requests if int(labels["status"][0]) < 4)
    total = sum(int(value) for _, value in requests)
    duration = reading.samples(f"{families.DURATION.name}_sum", family=families.DURATION.name)
    probes = reading.samples(
        f"{families.PROBE_LATENCY.name}_sum", family=families.PROBE_LATENCY.name
    )
    probe_counts = reading.samples(
        f"{families.PROBE_LATENCY.name}_count", family=families.PROBE_LATENCY.name
    )
    backends = {b.label: b.name for b in snapshot.backends} if snapshot else {}
    names = {label: name for name, label in snapshot.labels.backends.items()} if snapshot else {}
    models = {label: name for name, label in snapshot.labels.models.items()} if snapshot else {}
    count_of, time_of = _by("backend", requests), _by("backend", duration)
    probe_time, probe_count = _by("backend", probes), _by("backend", probe_counts)
    circuits = _by("backend", reading.samples(families.CIRCUIT_STATE.name))
    model_count, model_time = _by("model", requests), _by("model", duration)
    ttft_time = _by(
        "model", reading.samples(f"{families.TTFT.name}_sum", family=families.TTFT.name)
    )
    ttft_count = _by(
        "model", reading.samples(f"{families.TTFT.name}_count", family=families.TTFT.name)
    )
    return {
        "uptime_seconds": int(uptime_s),
        "requests": {"total": total, "success": success, "errors": total - success},
        "streams": _streams(reading),
        "queue": {
            "depth": int(sum(value for _, value in reading.samples(families.QUEUE_DEPTH.name)))
        },
        "backends": [
            {
                "id": label,
                "name": names.get(label, label),
                "requests": int(count_of[label]),
                "average_latency_ms": _average_ms(time_of[label], count_of[label]),
                "probe_latency_ms": _average_ms(probe_time[label], probe_count[label]),
                "pending": reading.pending.get(label, 0),
                "circuit": STATES[int(circuits[label])],
                **msgspec.to_builtins(lately.get(label, _NOTHING)),
            }
            for label in sorted({*backends, *count_of})
        ],
        "models": [
            {
                "name": models.get(label, label),
                "requests": int(model_count[label]),
                "average_duration_ms": _average_ms(model_time[label], model_count[label]),
                "average_ttft_ms": _average_ms(ttft_time[label], ttft_count[label])
                if ttft_count[label]
                else None,
            }
            for label in sorted(model_count)
        ],
    }


_NO_WINDOW = Window(seconds=0, attempts=0, error_rate=None, success_rate=None, average_ttft_ms=None)
_NOTHING = RecentOutcomes(last_hour=_NO_WINDOW, last_day=_NO_WINDOW)


def _streams(reading: MetricsSnapshot) -> dict[str, Any]:
    """What clients of streams see: how many there are, how they began, how fast they were, how they ended."""

    def mean(family: families.Family) -> float | None:
        count = sum(
            value for _, value in reading.samples(f"{family.name}_count", family=family.name)
        )
        total = sum(value for _, value in reading.samples(f"{family.name}_sum", family=family.name))
        return total / count if count else None

    ttft_s, tpot_s = mean(families.TTFT), mean(families.TPOT)
    return {
        "active": int(sum(value for _, value in reading.samples(families.STREAMS_ACTIVE.name))),
        "average_ttft_ms": round(ttft_s * 1000, 3) if ttft_s is not None else None,
        "average_tokens_per_second": round(1 / tpot_s, 3) if tpot_s else None,
        "ends": {
            end: int(n)
            for end, n in sorted(_by("reason", reading.samples(families.STREAM_ENDS.name)).items())
        },
    }


def _by(label: str, samples: Iterable[tuple[Labels, float]]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for labels, value in samples:
        sums[labels[label]] += value
    return sums


def _average_ms(seconds: float, count: float) -> float:
    return round(seconds / count * 1000, 3) if count else 0.0
