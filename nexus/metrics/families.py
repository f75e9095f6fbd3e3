"""The one table of metric families: name, type, labels, buckets, and when each moves.

Recording, rendering and the documentation read these rows; names, labels and buckets of the first ten are fixed by the
dashboards of the original system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
PROBE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, *SECONDS)
TOKENS = (10, 50, 100, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000)

Kind = Literal["counter", "gauge", "histogram"]
Source = Literal["workers", "health", "scrape"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One metric family. `source`: counted by workers, by the health process, or rendered at the scrape."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    source: Source = "workers"


REQUESTS = Family(
    name="nexus_requests_total",
    kind="counter",
    labels=("model", "backend", "status"),
    help="Requests to a proxied endpoint that ended, whatever their end, by the status the client got.",
)
ERRORS = Family(
    name="nexus_errors_total",
    kind="counter",
    labels=("error_type", "model"),
    help="Requests that ended in failure, by its kind; never counted per attempt.",
)
FALLBACKS = Family(
    name="nexus_fallbacks_total",
    kind="counter",
    labels=("from_model", "to_model"),
    help="Requests that another model than the asked one served.",
)
DURATION = Family(
    name="nexus_request_duration_seconds",
    kind="histogram",
    labels=("model", "backend"),
    buckets=SECONDS,
    help="Time from a request's head to the last byte of its answer, streams included.",
)
PROBE_LATENCY = Family(
    name="nexus_backend_latency_seconds",
    kind="histogram",
    labels=("backend",),
    buckets=PROBE_SECONDS,
    source="health",
    help="Latency of health probes that got an answer.",
)
TOKENS_USED = Family(
    name="nexus_tokens_total",
    kind="histogram",
    labels=("model", "backend", "type"),
    buckets=TOKENS,
    help="Tokens of requests whose usage is known, by type (prompt, completion).",
)
BACKENDS = Family(name="nexus_backends_total", kind="gauge", source="health", help="Backends registered.")
BACKENDS_HEALTHY = Family(
    name="nexus_backends_healthy", kind="gauge", source="health", help="Backends whose status is healthy."
)
MODELS_AVAILABLE = Family(
    name="nexus_models_available", kind="gauge", source="health", help="Distinct models on healthy backends."
)
PENDING = Family(
    name="nexus_pending_requests",
    kind="gauge",
    labels=("backend",),
    source="scrape",
    help="Requests queued for or in flight to the backend, over all workers.",
)
STARTED = Family(
    name="nexus_requests_started_total",
    kind="counter",
    labels=("endpoint",),
    help="Requests to a proxied endpoint whose head was read.",
)
LOST = Family(
    name="nexus_requests_lost_total",
    kind="counter",
    help="Requests that a killed process had in flight, booked once by whoever finds its slot free.",
)
REJECTED = Family(
    name="nexus_http_rejected_total",
    kind="counter",
    labels=("reason",),
    help="Requests outside the proxied endpoints that were refused: not_found, method_not_allowed, bad_request.",
)
ATTEMPTS = Family(
    name="nexus_upstream_attempts_total",
    kind="counter",
    labels=("backend", "outcome"),
    help="Attempts at a backend, several for a request that was retried; outcome is ok or the fault's error_type.",
)
RETRIES = Family(
    name="nexus_retries_total",
    kind="counter",
    labels=("backend", "error_type"),
    help="Attempts that failed and were followed by another, by the backend that failed and the kind of failure.",
)
UNKNOWN_MODELS = Family(
    name="nexus_unknown_models_total",
    kind="counter",
    help="Requests for a model that no backend and no configuration knows; their label is unknown.",
)
WRITE_ERRORS = Family(
    name="nexus_metrics_write_errors_total",
    kind="counter",
    help="Series that could not be shared because their file could not grow; they are counted in the process alone.",
)
BACKEND_UP = Family(
    name="nexus_backend_up",
    kind="gauge",
    labels=("backend",),
    source="health",
    help="1 where the backend is healthy, else 0.",
)
BACKEND_INFO = Family(
    name="nexus_backend_info",
    kind="gauge",
    labels=("backend", "name", "type", "url", "zone", "tier"),
    source="health",
    help="Maps a backend's label value to its real name and place; always 1.",
)
MODEL_INFO = Family(
    name="nexus_model_info",
    kind="gauge",
    labels=("model", "name"),
    source="health",
    help="Maps a model's label value to its real name; always 1.",
)
FLEET_UPDATED = Family(
    name="nexus_fleet_last_update_timestamp_seconds",
    kind="gauge",
    source="health",
    help="Unix time of the health process's last completed round of probes.",
)
LABELS_OVERFLOWED = Family(
    name="nexus_labels_overflowed",
    kind="gauge",
    labels=("kind",),
    source="health",
    help="Names beyond the cap of their kind (model, backend), which are counted as other.",
)
HEALTH_PROCESS_UP = Family(
    name="nexus_health_process_up", kind="gauge", source="scrape", help="1 while the health process runs, else 0."
)
BUILD_INFO = Family(
    name="nexus_build_info", kind="gauge", labels=("version",), source="scrape", help="The version; always 1."
)
IMBALANCE = Family(
    name="nexus_accounting_imbalance",
    kind="gauge",
    source="scrape",
    help="Requests started, less those finished, in flight and lost, each counted on its own. It must be 0.",
)
WORKERS = Family(name="nexus_workers", kind="gauge", source="scrape", help="Worker processes that hold a slot.")
WORKER_RESTARTS = Family(
    name="nexus_worker_restarts_total",
    kind="counter",
    source="scrape",
    help="Workers started beyond the number that the gateway was started with.",
)
PROCESS_MEMORY = Family(
    name="nexus_process_resident_memory_bytes",
    kind="gauge",
    labels=("slot", "role", "pid"),
    source="scrape",
    help="Resident memory of each process.",
)
PROCESS_CPU = Family(
    name="nexus_process_cpu_seconds_total",
    kind="counter",
    labels=("slot", "role", "pid"),
    source="scrape",
    help="Processor time of each process, user and system.",
)
DAMAGED_FILES = Family(
    name="nexus_metrics_damaged_files_total",
    kind="counter",
    source="scrape",
    help="Metrics files that were damaged and set aside.",
)
RUN_DIRECTORY = Family(
    name="nexus_run_directory_usable",
    kind="gauge",
    source="scrape",
    help="1 where the run directory is there and has space, else 0.",
)
SCRAPE_DURATION = Family(
    name="nexus_scrape_duration_seconds",
    kind="gauge",
    source="scrape",
    help="How long the reading of the figures in this answer took.",
)

FAMILIES: tuple[Family, ...] = (
    REQUESTS,
    ERRORS,
    FALLBACKS,
    DURATION,
    PROBE_LATENCY,
    TOKENS_USED,
    BACKENDS,
    BACKENDS_HEALTHY,
    MODELS_AVAILABLE,
    PENDING,
    STARTED,
    LOST,
    REJECTED,
    ATTEMPTS,
    RETRIES,
    UNKNOWN_MODELS,
    BACKEND_UP,
    BACKEND_INFO,
    MODEL_INFO,
    FLEET_UPDATED,
    LABELS_OVERFLOWED,
    HEALTH_PROCESS_UP,
    IMBALANCE,
    WORKERS,
    WORKER_RESTARTS,
    PROCESS_MEMORY,
    PROCESS_CPU,
    RUN_DIRECTORY,
    WRITE_ERRORS,
    DAMAGED_FILES,
    SCRAPE_DURATION,
    BUILD_INFO,
)
ORDER: dict[str, int] = {family.name: position for position, family in enumerate(FAMILIES)}
