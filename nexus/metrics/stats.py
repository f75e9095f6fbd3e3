"""`/v1/stats`: the values of `/metrics`, from the same snapshot, under the models' real names."""

from __future__ import annotations

from collections.abc import Mapping

from nexus.fleet.circuits import STATES, State
from nexus.fleet.records import Snapshot
from nexus.fleet.windows import RecentOutcomes, Trouble, Window
from nexus.metrics import families
from nexus.metrics.collector import MetricsSnapshot
from nexus.metrics.family import Family
from nexus.runtime.documents import Amount, Count, Document


class RequestTotals(Document, frozen=True):
    total: Count
    success: Count
    errors: Count


class StreamStats(Document, frozen=True):
    """What clients of streams see.

    Attributes:
        active: Streams that are open now.
        ends: Reason → how many streams ended for it.
    """

    active: Count
    average_ttft_ms: Amount | None
    average_tokens_per_second: Amount | None
    ends: dict[str, Count]


class QueueStats(Document, frozen=True):
    depth: Count


class BackendStats(Document, frozen=True):
    """The requests to one backend.

    Attributes:
        id: Label value of the backend in `/metrics`.
        pending: Requests that are queued for it or in flight to it.
        trouble: Why it served nothing in the last ten minutes although it got requests.
    """

    id: str
    name: str
    requests: Count
    average_latency_ms: Amount
    probe_latency_ms: Amount
    pending: Count
    circuit: State
    last_hour: Window
    last_day: Window
    trouble: Trouble | None


class ModelStats(Document, frozen=True):
    name: str
    requests: Count
    average_duration_ms: Amount
    average_ttft_ms: Amount | None


class Stats(Document, frozen=True):
    """`/v1/stats`. The requests of all backends, and those of all models, add up to the total."""

    uptime_seconds: Count
    requests: RequestTotals
    streams: StreamStats
    queue: QueueStats
    backends: list[BackendStats]
    models: list[ModelStats]


def stats(
    metrics: MetricsSnapshot,
    snapshot: Snapshot | None,
    *,
    uptime_s: float,
    recent: Mapping[str, RecentOutcomes],
) -> Stats:
    """Totals, then the same requests by backend and by model; each sum is the total.

    `recent`: how each backend did in the last hour and day, by its label value.
    """
    requests = metrics.samples(families.REQUESTS)
    success = sum(int(value) for labels, value in requests if int(labels["status"][0]) < 4)
    total = sum(int(value) for _, value in requests)
    backends = {b.label: b.name for b in snapshot.backends} if snapshot else {}
    names = {label: name for name, label in snapshot.labels.backends.items()} if snapshot else {}
    models = {label: name for name, label in snapshot.labels.models.items()} if snapshot else {}
    by = metrics.by
    count_of = by("backend", families.REQUESTS)
    time_of = by("backend", families.DURATION, "_sum")
    probe_time = by("backend", families.PROBE_LATENCY, "_sum")
    probe_count = by("backend", families.PROBE_LATENCY, "_count")
    circuits = by("backend", families.CIRCUIT_STATE)
    model_count = by("model", families.REQUESTS)
    model_time = by("model", families.DURATION, "_sum")
    ttft_time, ttft_count = (by("model", families.TTFT, part) for part in ("_sum", "_count"))

    def backend(label: str) -> BackendStats:
        own = recent.get(label, _NOTHING)
        return BackendStats(
            id=label,
            name=names.get(label, label),
            requests=int(count_of[label]),
            average_latency_ms=_average_ms(time_of[label], count_of[label]),
            probe_latency_ms=_average_ms(probe_time[label], probe_count[label]),
            pending=metrics.pending.get(label, 0),
            circuit=STATES[int(circuits[label])],
            last_hour=own.last_hour,
            last_day=own.last_day,
            trouble=own.trouble,
        )

    return Stats(
        uptime_seconds=int(uptime_s),
        requests=RequestTotals(total=total, success=success, errors=total - success),
        streams=_streams(metrics),
        queue=QueueStats(depth=int(metrics.total(families.QUEUE_DEPTH))),
        backends=[backend(label) for label in sorted({*backends, *count_of})],
        models=[
            ModelStats(
                name=models.get(label, label),
                requests=int(model_count[label]),
                average_duration_ms=_average_ms(model_time[label], model_count[label]),
                average_ttft_ms=_average_ms(ttft_time[label], ttft_count[label])
                if ttft_count[label]
                else None,
            )
            for label in sorted(model_count)
        ],
    )


_NO_WINDOW = Window(seconds=0, attempts=0, error_rate=None, success_rate=None, average_ttft_ms=None)
_NOTHING = RecentOutcomes(last_hour=_NO_WINDOW, last_day=_NO_WINDOW, trouble=None)


def _streams(metrics: MetricsSnapshot) -> StreamStats:
    def mean(family: Family) -> float | None:
        count = metrics.total(family, "_count")
        return metrics.total(family, "_sum") / count if count else None

    ttft_s, tpot_s = mean(families.TTFT), mean(families.TPOT)
    return StreamStats(
        active=int(metrics.total(families.STREAMS_ACTIVE)),
        average_ttft_ms=round(ttft_s * 1000, 3) if ttft_s is not None else None,
        average_tokens_per_second=round(1 / tpot_s, 3) if tpot_s else None,
        ends={
            end: int(n)
            for end, n in sorted(metrics.by("reason", families.STREAM_ENDS_TOTAL).items())
        },
    )


def _average_ms(seconds: float, count: float) -> float:
    return round(seconds / count * 1000, 3) if count else 0.0
