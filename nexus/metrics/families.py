"""The table of metric families. Recording, rendering, documentation and bounds read these rows.

To add a family, add a row here and a call that records it. The names, labels and buckets of
`nexus_requests_total` to `nexus_tokens_total`, and of the gauges of backends, are public and fixed.
"""

from __future__ import annotations

from nexus.errors import STREAM_ENDS
from nexus.metrics import access_families, cost_families, gateway_families
from nexus.metrics.family import Family, Label, counter, gauge, histogram
from nexus.metrics.label_values import (
    BACKEND,
    BACKEND_NOW,
    DECISION_SECONDS,
    ERROR_TYPE,
    EXCLUSION_REASONS,
    FOLLOWS,
    LABEL_KIND,
    LAG_SECONDS,
    MODEL,
    OVERHEAD_SECONDS,
    PROBE_SECONDS,
    QUEUE_SECONDS,
    REJECTION_REASONS,
    SECONDS,
    STATUS,
    TOKENS,
    TPOT_SECONDS,
    TRANSLATION_NAMES,
    TTFT_SECONDS,
    UPLOAD_BYTES_BUCKETS,
)
from nexus.metrics.labels import OTHER

REQUESTS = counter(
    "nexus_requests_total",
    "Finished requests to proxied endpoints, by the status that the client got.",
    model=MODEL,
    backend=BACKEND,
    status=STATUS,
)
ERRORS = counter(
    "nexus_errors_total",
    "Requests that failed, by kind of failure. Counted per request, not per attempt.",
    error_type=ERROR_TYPE,
    model=MODEL,
)
FALLBACKS = counter(
    "nexus_fallbacks_total",
    "Requests served by another model than the requested one.",
    from_model=MODEL,
    to_model=MODEL,
)
DURATION = histogram(
    "nexus_request_duration_seconds",
    "Time from a request's first byte to the last byte of its response, streams included.",
    SECONDS,
    model=MODEL,
    backend=BACKEND,
)
PROBE_LATENCY = histogram(
    "nexus_backend_latency_seconds",
    "Latency of health probes that got a response.",
    PROBE_SECONDS,
    "health",
    backend=BACKEND,
)
TOKENS_USED = histogram(
    "nexus_tokens_total",
    "Tokens of requests whose usage is known, by type (prompt, completion).",
    TOKENS,
    model=MODEL,
    backend=BACKEND,
    type=Label(("prompt", "completion")),
)
TOKEN_DETAILS = counter(
    "nexus_token_details_total",
    "Parts of the tokens that the backend reported: prompt tokens read from its cache (cached) or "
    "written to it (cache_write), reasoning completion tokens.",
    model=MODEL,
    backend=BACKEND,
    type=Label(("cached", "reasoning", "cache_write")),
)
UNITS = counter(
    "nexus_units_total",
    "What endpoints served beside tokens, by unit: images, seconds (of audio, as the backend "
    "reports them), characters (of texts that were spoken).",
    endpoint=Label(names="endpoints"),
    unit=Label(("images", "seconds", "characters")),
)
UPLOAD_BYTES = histogram(
    "nexus_upload_bytes", "Bytes of the forms that clients uploaded.", UPLOAD_BYTES_BUCKETS
)
SPOOLED_BYTES = gauge(
    "nexus_spooled_bytes",
    "Bytes of uploads that are kept in files now, over all workers.",
    "scrape",
)
USAGE = counter(
    "nexus_usage_total",
    "Served requests by the source of their token usage: reported (by the backend by itself, or "
    "because the client requested it), requested (by the gateway), counted (from a stream's "
    "events), none.",
    source=Label(("reported", "requested", "counted", "none")),
)
TRANSLATED = counter(
    "nexus_translated_requests_total",
    "Finished requests whose last attempt was at a backend that speaks another API than the "
    "client, by translation.",
    backend=BACKEND,
    translation=Label(TRANSLATION_NAMES),
)
DIALECT_REQUESTS = counter(
    "nexus_dialect_requests_total",
    "Finished requests for which a backend was tried, by how the last one gets them: native (in "
    "the client's API) or translated. Those that cannot be translated count, too.",
    endpoint=Label(names="endpoints"),
    mode=Label(("native", "translated")),
)
TTFT = histogram(
    "nexus_time_to_first_token_seconds",
    "Time from a request's first byte to the first event of its stream that has content, a tool "
    "call or reasoning. Observed when it arrives, however the stream ends.",
    TTFT_SECONDS,
    model=MODEL,
    backend=BACKEND,
)
TPOT = histogram(
    "nexus_time_per_output_token_seconds",
    "Time from a stream's first token to its end, per further token. Counted by tokens if the "
    "backend reported them, else by events.",
    TPOT_SECONDS,
    model=MODEL,
    backend=BACKEND,
    by=Label(("tokens", "events")),
)
STREAM_GAP = histogram(
    "nexus_stream_longest_gap_seconds",
    "The longest silence of each stream after its first token.",
    TTFT_SECONDS,
    model=MODEL,
    backend=BACKEND,
)
STREAM_EVENTS = counter(
    "nexus_stream_events_total",
    "Events with data in finished streams.",
    model=MODEL,
    backend=BACKEND,
)
STREAM_ENDS_TOTAL = counter(
    "nexus_stream_ends_total",
    "Streams whose content had started to reach the client, by how they ended: "
    f"{', '.join(STREAM_ENDS)}. upstream_truncated: neither [DONE] nor a finish reason.",
    backend=BACKEND,
    reason=Label(STREAM_ENDS),
)
STREAM_PINGS = counter(
    "nexus_stream_pings_total",
    "Pings and comments that clients got within their streams because the backend was silent.",
)
STREAMS_ACTIVE = gauge(
    "nexus_streams_active",
    "Streams being sent to a client now, over all workers.",
    "scrape",
)
OVERHEAD = histogram(
    "nexus_gateway_overhead_seconds",
    "Time that served requests spent in the gateway itself, without waiting for a client, a "
    "backend or the queue. before: until the request was sent to the backend. after: from its "
    "response, or a stream's first content, on.",
    OVERHEAD_SECONDS,
    phase=Label(("before", "after")),
)
LOOP_LAG = histogram(
    "nexus_event_loop_lag_seconds",
    "How late a worker's event loop ran a timer, measured twice a second in each gevent worker.",
    LAG_SECONDS,
)
BACKENDS = gauge("nexus_backends_total", "Backends registered.", "health")
BACKENDS_HEALTHY = gauge("nexus_backends_healthy", "Backends whose status is healthy.", "health")
MODELS_AVAILABLE = gauge("nexus_models_available", "Distinct models on healthy backends.", "health")
PENDING = gauge(
    "nexus_pending_requests",
    "Requests queued for the backend or in flight to it, over all workers. "
    "A request that waits for several backends counts at one of them.",
    "scrape",
    backend=BACKEND_NOW,
)
STARTED = counter(
    "nexus_requests_started_total",
    "Requests to a proxied endpoint whose headers were read.",
    endpoint=Label(names="endpoints"),
)
LOST = counter(
    "nexus_requests_lost_total",
    "Requests in flight in a process that was killed. Recorded once, by the next process that uses "
    "its slot or by the health process.",
)
REJECTED = counter(
    "nexus_http_rejected_total",
    "Requests that reached no endpoint, or whose view failed, by reason: "
    f"{', '.join(REJECTION_REASONS)}.",
    reason=Label(REJECTION_REASONS),
)
PREFLIGHTS = counter(
    "nexus_http_preflights_total",
    "CORS preflights (OPTIONS with Origin and Access-Control-Request-Method). They are not counted "
    "as requests.",
)
ATTEMPTS = counter(
    "nexus_upstream_attempts_total",
    "Attempts at a backend; a retried request makes several. outcome is ok or the failure's "
    "error_type. Attempts whose request could not be sent, or not be translated, count, too.",
    backend=BACKEND,
    outcome=Label(("ok", *ERROR_TYPE.values)),
)
RETRIES = counter(
    "nexus_retries_total",
    "Failed attempts that were followed by another one, by the backend that failed and the kind of "
    "failure.",
    backend=BACKEND,
    error_type=ERROR_TYPE,
)
RETRIES_DENIED = counter(
    "nexus_retries_denied_total",
    "Failed attempts that were not retried because the host's retry budget was used up.",
    backend=BACKEND,
)
EXCLUSIONS = counter(
    "nexus_routing_exclusions_total",
    "Backends that have the model of a request and were not considered for its first attempt, by "
    f"reason: {', '.join(EXCLUSION_REASONS)}.",
    reason=Label(EXCLUSION_REASONS),
)
AFFINITY = counter(
    "nexus_affinity_total",
    "Requests with a session for which affinity chose the backend, by how the session was known "
    "(header, body, prefix) and by result: hit (its home), spill (another backend, because its "
    "home was overloaded or had just failed). Only the backend knows whether its cache was warm: "
    "nexus_token_details_total.",
    source=Label(("header", "body", "prefix")),
    result=Label(("hit", "spill")),
)
STICKY = counter(
    "nexus_sticky_total",
    "Requests that name a response or a conversation that a backend stores, by result: hit (its "
    "backend is known), unknown (no backend is known), gone (its backend is not in the fleet any "
    "more).",
    result=Label(("hit", "unknown", "gone")),
)
STICKY_IDS = gauge(
    "nexus_sticky_ids",
    "Ids of responses and conversations in the table of their backends, by state: used, free.",
    "scrape",
    state=Label(("used", "free")),
)
DECISION = histogram(
    "nexus_routing_decision_seconds",
    "Time to choose a backend, or to find that there is none. Waiting in the queue is excluded.",
    DECISION_SECONDS,
)
CIRCUIT_STATE = gauge(
    "nexus_backend_circuit_state",
    "The backend's circuit: 0 closed, 1 half open (one request may probe it), 2 open (excluded "
    "from routing).",
    "scrape",
    backend=BACKEND_NOW,
)
CIRCUIT_OPENED = counter(
    "nexus_circuit_opened_total",
    "Times that a backend's circuit opened because requests to it failed.",
    backend=BACKEND,
)
UNSOLICITED = counter(
    "nexus_backend_unsolicited_responses_total",
    "Connections closed because the backend sent bytes while no request was open. For five minutes "
    "after each, its worker keeps no connections to the backend.",
    backend=BACKEND,
)
QUEUE_DEPTH = gauge(
    "nexus_queue_depth", "Requests waiting for capacity at a backend, over all workers.", "scrape"
)
QUEUE_WAIT = histogram(
    "nexus_queue_wait_seconds",
    "How long requests waited for capacity at a backend, however the wait ended.",
    QUEUE_SECONDS,
)
QUEUE_REJECTIONS = counter(
    "nexus_queue_rejections_total",
    "Requests that were refused by the queue: full (too many were waiting), late (the longest "
    "allowed wait was over).",
    reason=Label(("full", "late")),
)
UNKNOWN_MODELS = counter(
    "nexus_unknown_models_total",
    "Requests for a model that neither a backend nor the configuration has. Their model label is "
    "unknown.",
)
BACKEND_UP = gauge(
    "nexus_backend_up", "1 if the backend is healthy, else 0.", "health", backend=BACKEND_NOW
)
BACKEND_DRAINING = gauge(
    "nexus_backend_draining",
    "1 if an operator drains the backend, so that it gets no new requests, else 0.",
    "health",
    backend=BACKEND_NOW,
)
BACKEND_INFO = gauge(
    "nexus_backend_info",
    "Maps a backend's label value to its real name and attributes; always 1.",
    "health",
    backend=BACKEND_NOW,
    name=FOLLOWS,
    type=FOLLOWS,
    url=FOLLOWS,
    zone=FOLLOWS,
    tier=FOLLOWS,
)
MODEL_INFO = gauge(
    "nexus_model_info",
    "Maps a model's label value to its real name; always 1.",
    "health",
    model=Label(names="models"),
    name=FOLLOWS,
)
MODEL_BACKENDS = gauge(
    "nexus_model_backends",
    "Backends that have the model and may get requests: healthy and not draining.",
    "health",
    model=Label((OTHER,), names="models"),
)
FLEET_UPDATED = gauge(
    "nexus_fleet_last_update_timestamp_seconds",
    "Unix time of the health process's last completed round of probes.",
    "health",
)
RELOAD_SUCCESSFUL = gauge(
    "nexus_config_last_reload_successful",
    "1 if the configuration was valid when it was last read, 0 if it was refused and the previous "
    "one stays.",
    "health",
)
RELOADED = gauge(
    "nexus_config_last_reload_success_timestamp_seconds",
    "Unix time at which the configuration now in use was read.",
    "health",
)
LABELS = gauge(
    "nexus_labels",
    "Names that have a label value of their own, by kind (model, backend).",
    "health",
    kind=LABEL_KIND,
)
LABELS_LIMIT = gauge(
    "nexus_labels_limit",
    "The limit on such names, by kind: [metrics] max_models and max_backends.",
    "health",
    kind=LABEL_KIND,
)
LABELS_OVERFLOWED = gauge(
    "nexus_labels_overflowed",
    "Names over the limit of their kind (model, backend), which are counted as other.",
    "health",
    kind=LABEL_KIND,
)
FAMILIES: tuple[Family, ...] = tuple(
    row
    for rows in (globals(), *map(vars, (gateway_families, access_families, cost_families)))
    for row in list(rows.values())
    if isinstance(row, Family)
)
"""Every row above, then those of the modules beside it, in the order in which they are exposed and
documented."""
