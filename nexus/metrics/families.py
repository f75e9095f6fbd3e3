"""The one table of metric families: name, type, labels, buckets, and when each moves.

Recording, rendering and the documentation read these rows; names, labels and buckets of the first ten are fixed by the
dashboards of the original system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TTFT_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5,
    0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
"""OpenTelemetry's boundaries for `gen_ai.server.time_to_first_token`, with some at the end."""
TPOT_SECONDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 10.0, 120.0, 300.0,
)  # fmt: skip
"""OpenTelemetry's boundaries for `gen_ai.server.time_per_output_token`, with some at the end."""
OVERHEAD_SECONDS = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.5,
)
LAG_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
QUEUE_SECONDS = (0.005, 0.01, 0.025, 0.05, *SECONDS)
DECISION_SECONDS = (
    0.000005,
    0.00001,
    0.000025,
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.01,
)
PROBE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, *SECONDS)
TOKENS = (10, 50, 100, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 128000)

EXCLUSION_REASONS = (
    "unknown", "unhealthy", "draining", "capability_mismatch", "privacy_restricted", "tier_below_minimum",
    "circuit_open", "busy", "at_capacity",
)  # fmt: skip
"""Why a backend that has the model of a request is not considered for it."""

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
TOKEN_DETAILS = Family(
    name="nexus_token_details_total",
    kind="counter",
    labels=("model", "backend", "type"),
    help="Tokens that the backend told of in addition: cached ones of the prompt, reasoning ones of the completion.",
)
USAGE = Family(
    name="nexus_usage_total",
    kind="counter",
    labels=("source",),
    help="Served requests by where their token usage is known from: reported (the backend told it as the client asked, "
    "or unasked), requested (it told it because the gateway asked), counted (from a stream's events), none.",
)
TTFT = Family(
    name="nexus_time_to_first_token_seconds",
    kind="histogram",
    labels=("model", "backend"),
    buckets=TTFT_SECONDS,
    help="Time from a request's head to the first event of its stream with content, a tool call or reasoning; observed "
    "when it comes, whatever the stream's end.",
)
TPOT = Family(
    name="nexus_time_per_output_token_seconds",
    kind="histogram",
    labels=("model", "backend", "by"),
    buckets=TPOT_SECONDS,
    help="Time from a stream's first token to its end, for each further token; by the tokens that the backend told, or "
    "by the events that came where it told none.",
)
STREAM_GAP = Family(
    name="nexus_stream_longest_gap_seconds",
    kind="histogram",
    labels=("model", "backend"),
    buckets=TTFT_SECONDS,
    help="The longest silence of each stream after its first token.",
)
STREAM_EVENTS = Family(
    name="nexus_stream_events_total",
    kind="counter",
    labels=("model", "backend"),
    help="Events with data in streams that have ended.",
)
STREAM_ENDS = Family(
    name="nexus_stream_ends_total",
    kind="counter",
    labels=("backend", "reason"),
    help="How streams ended that had begun to reach the client: complete, client_disconnect, upstream_reset, "
    "upstream_truncated (neither [DONE] nor a reason for finishing), idle_timeout, deadline, in_band_error, shutdown.",
)
STREAMS_ACTIVE = Family(
    name="nexus_streams_active",
    kind="gauge",
    source="scrape",
    help="Streams whose content goes to a client now, over all workers.",
)
OVERHEAD = Family(
    name="nexus_gateway_overhead_seconds",
    kind="histogram",
    labels=("phase",),
    buckets=OVERHEAD_SECONDS,
    help="Time that served requests spent in the gateway itself, not waiting for a client, a backend or room: before "
    "the backend was asked, and after its answer (of a stream, its first content) was there.",
)
LOOP_LAG = Family(
    name="nexus_event_loop_lag_seconds",
    kind="histogram",
    buckets=LAG_SECONDS,
    help="How late a worker's event loop woke what was due, looked at twice a second in each gevent worker.",
)
BACKENDS = Family(
    name="nexus_backends_total", kind="gauge", source="health", help="Backends registered."
)
BACKENDS_HEALTHY = Family(
    name="nexus_backends_healthy",
    kind="gauge",
    source="health",
    help="Backends whose status is healthy.",
)
MODELS_AVAILABLE = Family(
    name="nexus_models_available",
    kind="gauge",
    source="health",
    help="Distinct models on healthy backends.",
)
PENDING = Family(
    name="nexus_pending_requests",
    kind="gauge",
    labels=("backend",),
    source="scrape",
    help="Requests queued for or in flight to the backend, over all workers; one that waits for several counts at one.",
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
    help="Requests that reached no endpoint: not_found, method_not_allowed, bad_request, origin_refused, "
    "head_too_slow, head_too_large.",
)
PREFLIGHTS = Family(
    name="nexus_http_preflights_total",
    kind="counter",
    help="Preflights (OPTIONS with Origin and Access-Control-Request-Method), which are not counted as requests.",
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
RETRIES_DENIED = Family(
    name="nexus_retries_denied_total",
    kind="counter",
    labels=("backend",),
    help="Attempts that failed and would have been followed by another, had the host's budget for retries allowed it.",
)
EXCLUSIONS = Family(
    name="nexus_routing_exclusions_total",
    kind="counter",
    labels=("reason",),
    help="Backends that have the model of a request and were not considered for its first attempt, by the reason: "
    f"{', '.join(EXCLUSION_REASONS)}.",
)
DECISION = Family(
    name="nexus_routing_decision_seconds",
    kind="histogram",
    buckets=DECISION_SECONDS,
    help="Time that choosing a backend took, or finding that there is none; waiting in the queue is not in it.",
)
CIRCUIT_OPENED = Family(
    name="nexus_circuit_opened_total",
    kind="counter",
    labels=("backend",),
    help="Times that a backend was taken out of the choice because requests to it failed.",
)
UNSOLICITED = Family(
    name="nexus_backend_unsolicited_responses_total",
    kind="counter",
    labels=("backend",),
    help="Connections closed because the backend sent bytes to which no request was open. For five minutes after each, "
    "its worker keeps no connections to the backend.",
)
QUEUE_WAIT = Family(
    name="nexus_queue_wait_seconds",
    kind="histogram",
    buckets=QUEUE_SECONDS,
    help="How long requests waited for room at a backend, however the wait ended.",
)
QUEUE_REJECTIONS = Family(
    name="nexus_queue_rejections_total",
    kind="counter",
    labels=("reason",),
    help="Requests that found no room: full (as many wait as may), late (the longest wait was over).",
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
BACKEND_DRAINING = Family(
    name="nexus_backend_draining",
    kind="gauge",
    labels=("backend",),
    source="health",
    help="1 where an operator has it get no new requests, else 0.",
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
MODEL_BACKENDS = Family(
    name="nexus_model_backends",
    kind="gauge",
    labels=("model",),
    source="health",
    help="Backends that have the model and may be given requests: healthy ones that are not drained.",
)
CIRCUIT_STATE = Family(
    name="nexus_backend_circuit_state",
    kind="gauge",
    labels=("backend",),
    source="scrape",
    help="What requests saw of the backend: 0 closed (well), 1 half open (one request may try), 2 open (taken out).",
)
QUEUE_DEPTH = Family(
    name="nexus_queue_depth",
    kind="gauge",
    source="scrape",
    help="Requests that wait for room at a backend, over all workers.",
)
RELOAD_SUCCESSFUL = Family(
    name="nexus_config_last_reload_successful",
    kind="gauge",
    source="health",
    help="1 where the configuration was good when it was last read, 0 where it was refused and the old one stays.",
)
RELOADED = Family(
    name="nexus_config_last_reload_success_timestamp_seconds",
    kind="gauge",
    source="health",
    help="Unix time at which the configuration now in use was read.",
)
FLEET_UPDATED = Family(
    name="nexus_fleet_last_update_timestamp_seconds",
    kind="gauge",
    source="health",
    help="Unix time of the health process's last completed round of probes.",
)
LABELS = Family(
    name="nexus_labels",
    kind="gauge",
    labels=("kind",),
    source="health",
    help="Names that have a label value of their own, by kind (model, backend).",
)
LABELS_LIMIT = Family(
    name="nexus_labels_limit",
    kind="gauge",
    labels=("kind",),
    source="health",
    help="How many names of a kind may have one: [metrics] max_models and max_backends.",
)
LABELS_OVERFLOWED = Family(
    name="nexus_labels_overflowed",
    kind="gauge",
    labels=("kind",),
    source="health",
    help="Names beyond the cap of their kind (model, backend), which are counted as other.",
)
HEALTH_PROCESS_UP = Family(
    name="nexus_health_process_up",
    kind="gauge",
    source="scrape",
    help="1 while the health process runs and its event loop moves.",
)
BUILD_INFO = Family(
    name="nexus_build_info",
    kind="gauge",
    labels=("version",),
    source="scrape",
    help="The version; always 1.",
)
IMBALANCE = Family(
    name="nexus_accounting_imbalance",
    kind="gauge",
    source="scrape",
    help="Requests started, less those finished, in flight and lost, each counted on its own. It must be 0.",
)
WORKERS = Family(
    name="nexus_workers",
    kind="gauge",
    source="scrape",
    help="Worker processes that take connections.",
)
WORKERS_DRAINING = Family(
    name="nexus_workers_draining",
    kind="gauge",
    source="scrape",
    help="Worker processes that were replaced and only end the requests they have.",
)
WORKERS_SILENT = Family(
    name="nexus_workers_silent",
    kind="gauge",
    source="scrape",
    help="Worker processes whose event loop has not moved for more than ten seconds.",
)
WORKER_RESTARTS = Family(
    name="nexus_worker_restarts_total",
    kind="counter",
    source="scrape",
    help="Workers started beyond the number that the gateway was started with.",
)
WORKER_DEATHS = Family(
    name="nexus_worker_deaths_total",
    kind="counter",
    source="scrape",
    help="Workers that were killed or crashed. Reloads, recycling and changes of their number end workers as told.",
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
LOG_LINES_DROPPED = Family(
    name="nexus_log_lines_dropped_total",
    kind="counter",
    help="Lines of workers and health process that were lost because nobody read standard error.",
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
    TOKEN_DETAILS,
    USAGE,
    TTFT,
    TPOT,
    STREAM_GAP,
    STREAM_EVENTS,
    STREAM_ENDS,
    STREAMS_ACTIVE,
    OVERHEAD,
    LOOP_LAG,
    BACKENDS,
    BACKENDS_HEALTHY,
    MODELS_AVAILABLE,
    PENDING,
    STARTED,
    LOST,
    REJECTED,
    PREFLIGHTS,
    ATTEMPTS,
    RETRIES,
    RETRIES_DENIED,
    EXCLUSIONS,
    DECISION,
    CIRCUIT_STATE,
    CIRCUIT_OPENED,
    UNSOLICITED,
    QUEUE_DEPTH,
    QUEUE_WAIT,
    QUEUE_REJECTIONS,
    UNKNOWN_MODELS,
    BACKEND_UP,
    BACKEND_DRAINING,
    BACKEND_INFO,
    MODEL_INFO,
    MODEL_BACKENDS,
    FLEET_UPDATED,
    RELOAD_SUCCESSFUL,
    RELOADED,
    LABELS,
    LABELS_LIMIT,
    LABELS_OVERFLOWED,
    HEALTH_PROCESS_UP,
    IMBALANCE,
    WORKERS,
    WORKERS_DRAINING,
    WORKERS_SILENT,
    WORKER_RESTARTS,
    WORKER_DEATHS,
    PROCESS_MEMORY,
    PROCESS_CPU,
    RUN_DIRECTORY,
    WRITE_ERRORS,
    LOG_LINES_DROPPED,
    DAMAGED_FILES,
    SCRAPE_DURATION,
    BUILD_INFO,
)
ORDER: dict[str, int] = {family.name: position for position, family in enumerate(FAMILIES)}
