"""The configuration as a frozen tree of records: keys, defaults, limits, and a line about each key.

This is the one table of settings. Loading, checks, `nexus config init` and the documentation read
it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from nexus.config.access_records import Auth, Key, Team
from nexus.config.admin_records import Admin, Cors, Dashboard
from nexus.config.backend_records import BackendConfig
from nexus.config.budget_records import Budget
from nexus.config.cost_records import Costs
from nexus.config.endpoint_records import Endpoints
from nexus.config.fields import Count, LogFormat, LogLevel, Seconds, Section, Text, doc
from nexus.config.limit_records import Limit
from nexus.config.request_log_records import RequestLog
from nexus.config.routing_records import CircuitBreaker, Quality, Queue, Routing


class Server(Section, frozen=True):
    """Where the gateway listens and what one request may take."""

    host: Annotated[
        Text,
        doc(
            "Address to listen on. If it is not set, it is 127.0.0.1; with [auth] mode keys, "
            "0.0.0.0."
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535), doc("Port to listen on.")] = 8000
    workers: Annotated[
        int,
        Meta(ge=0, le=250),
        doc("Worker processes; 0: one per core that affinity and CPU quota allow."),
    ] = 0
    run_dir: Annotated[
        str,
        doc(
            "Directory shared by all processes of this gateway; empty: $RUNTIME_DIRECTORY, else "
            "one of the user, named by the port."
        ),
    ] = ""
    state_dir: Annotated[
        str,
        doc(
            "Directory of what outlives a restart, such as keys made by `nexus keys add`; empty: "
            "$STATE_DIRECTORY, else nexus/<port> in $XDG_STATE_HOME or ~/.local/state."
        ),
    ] = ""
    request_timeout_seconds: Annotated[
        Seconds,
        doc(
            "Limit for a whole response; for a stream, limit for its first byte and for any "
            "silence."
        ),
    ] = 300.0
    max_concurrent_requests: Annotated[
        Count, doc("Requests in flight over all workers; further ones get 503.")
    ] = 1000
    max_request_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 30),
        doc("Largest request body; a larger one gets 413."),
    ] = 32 * 1024 * 1024
    max_upload_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 34),
        doc("Largest form with files, such as audio; a larger one gets 413."),
    ] = 100 * 1024 * 1024
    spool_dir: Annotated[
        Text | None,
        doc(
            "Directory for uploads over 64 KiB while they are sent; their files have no "
            "names. Unset: $TMPDIR."
        ),
    ] = None
    max_buffered_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 40),
        doc(
            "Bytes of bodies and responses that one worker holds at once; further requests get 503."
        ),
    ] = 512 * 1024 * 1024
    body_timeout_seconds: Annotated[
        Seconds, doc("How long a whole request body may take; a slower one gets 408.")
    ] = 300.0
    min_body_bytes_per_second: Annotated[
        int,
        Meta(ge=0, le=1 << 30),
        doc(
            "Minimum rate of a request body after its first five seconds; a slower one gets 408. "
            "0: none."
        ),
    ] = 240
    max_answer_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 32),
        doc("Largest whole response of a backend; a larger one becomes 502."),
    ] = 64 * 1024 * 1024
    client_timeout_seconds: Annotated[
        Seconds,
        doc("How long a client may pause while it sends a request or reads a response."),
    ] = 60.0
    stream_keepalive_seconds: Annotated[
        float,
        Meta(ge=0, le=3600),
        doc(
            "Send a comment, or a ping, to a client each time it has waited so long for a stream "
            "to start or to go on; 0 sends none, except for a ping within a stream of "
            "/v1/messages after 10 seconds. The first comment sends status 200, so a later failure "
            "is an event of the stream. Pings of the backend before it are then not forwarded."
        ),
    ] = 0.0
    graceful_timeout_seconds: Annotated[
        Annotated[int, Meta(ge=1, le=86400)],
        doc("How long requests in progress may go on when the gateway is stopped."),
    ] = 30
    drain_timeout_seconds: Annotated[
        Annotated[int, Meta(ge=1, le=86400)],
        doc("How long requests of a replaced worker (HUP, TTOU, recycling) may go on."),
    ] = 3600


class Discovery(Section, frozen=True):
    """Discovery of backends on the local network (mDNS)."""

    enabled: Annotated[bool, doc("Look for backends on the network.")] = True
    service_types: Annotated[list[str], doc("mDNS service types to browse.")] = msgspec.field(
        default_factory=lambda: ["_ollama._tcp.local", "_llm._tcp.local"]
    )
    grace_period_seconds: Annotated[Seconds, doc("How long a vanished backend is kept.")] = 60.0


class HealthCheck(Section, frozen=True):
    """How the health process probes the backends."""

    enabled: Annotated[
        bool,
        doc(
            "Let probes decide which backends are healthy. If false, every backend counts as "
            "healthy, and probes only find its models."
        ),
    ] = True
    interval_seconds: Annotated[Seconds, doc("Time between two probes of a backend.")] = 30.0
    timeout_seconds: Annotated[Seconds, doc("Limit for one probe.")] = 5.0
    failure_threshold: Annotated[
        Count, doc("Failed probes in a row that make a backend unhealthy.")
    ] = 3
    recovery_threshold: Annotated[
        Count, doc("Successful probes in a row that make it healthy again.")
    ] = 2
    watchdog_seconds: Annotated[
        float,
        Meta(ge=2, le=3600),
        doc("`nexus serve` replaces a health process whose event loop is blocked for so long."),
    ] = 20.0
    listen: Annotated[
        str,
        Meta(title='host:port, such as "127.0.0.1:9464", or "off"'),
        doc(
            "Address of the operations port, which the health process serves, as host:port; "
            '"off" for none.'
        ),
    ] = "127.0.0.1:9464"


class Logging(Section, frozen=True):
    """The log, on standard error."""

    level: Annotated[
        LogLevel,
        doc(
            'Least severe level logged; request lines are info. "info,nexus::health=debug" sets '
            "component_levels too."
        ),
    ] = "info"
    format: Annotated[LogFormat, doc("pretty for people, json for machines.")] = "pretty"
    component_levels: Annotated[
        dict[str, LogLevel], doc("Levels by component, such as health or proxy.")
    ] = msgspec.field(default_factory=dict)
    enable_content_logging: Annotated[
        bool, doc("Accepted from older files and ignored: prompts and responses are never logged.")
    ] = False


class Metrics(Section, frozen=True):
    """Bounds on the number of series."""

    max_models: Annotated[
        Count,
        doc(
            "Model names with a label value at once; the rest become `other`. Half of them are "
            "for models as they are discovered, half for models that are requested."
        ),
    ] = 500
    max_backends: Annotated[
        Annotated[int, Meta(ge=1, le=500)],
        doc("Backend names with a label value at once; the rest become `other`."),
    ] = 200
    max_keys: Annotated[
        Count,
        doc("Keys, and teams, with a label value at once; the rest become `other`."),
    ] = 500
    retire_after_hours: Annotated[
        float,
        Meta(gt=0, le=8760),
        doc(
            "How long a model or backend must be gone before its label value is reused; its "
            "counts are then shown as `retired`."
        ),
    ] = 24.0


class Messages(Section, frozen=True):
    """Settings of Anthropic's API."""

    count_tokens: Annotated[
        Literal["backend", "estimate"],
        doc(
            "If no backend can count tokens for /v1/messages/count_tokens: its 404 (`backend`), "
            "or a third of the characters with the header x-nexus-estimated (`estimate`)."
        ),
    ] = "backend"
    count_tokens_limit: Annotated[
        str,
        Meta(title='a text such as "100/s", or "off"'),
        doc(
            "Requests to /v1/messages/count_tokens of each key, and without keys of each address: "
            "a number per s, min, h or d, or off. Limits on requests do not count them."
        ),
    ] = "100/s"


class Config(Section, frozen=True):
    """The whole configuration."""

    server: Server = Server()
    auth: Auth = Auth()
    teams: list[Team] = msgspec.field(default_factory=list)
    keys: list[Key] = msgspec.field(default_factory=list)
    limits: list[Limit] = msgspec.field(default_factory=list)
    budgets: list[Budget] = msgspec.field(default_factory=list)
    costs: Costs = Costs()
    cors: Cors = Cors()
    endpoints: Endpoints = Endpoints()
    messages: Messages = Messages()
    discovery: Discovery = Discovery()
    health_check: HealthCheck = HealthCheck()
    routing: Routing = Routing()
    backends: list[BackendConfig] = msgspec.field(default_factory=list)
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    quality: Quality = Quality()
    queue: Queue = Queue()
    logging: Logging = Logging()
    request_log: RequestLog = RequestLog()
    metrics: Metrics = Metrics()
    dashboard: Dashboard = Dashboard()
    admin: Admin = Admin()
    lifecycle: Annotated[dict[str, Any], doc("Model lifecycle.")] = msgspec.field(
        default_factory=dict
    )
    fleet: Annotated[dict[str, Any], doc("Fleet recommendations.")] = msgspec.field(
        default_factory=dict
    )


ENVIRONMENT: dict[str, tuple[str, str]] = {
    "NEXUS_HOST": ("server", "host"),
    "NEXUS_PORT": ("server", "port"),
    "NEXUS_WORKERS": ("server", "workers"),
    "NEXUS_RUN_DIR": ("server", "run_dir"),
    "NEXUS_GRACEFUL_TIMEOUT": ("server", "graceful_timeout_seconds"),
    "NEXUS_HEALTH_LISTEN": ("health_check", "listen"),
    "NEXUS_HEALTH_CHECK": ("health_check", "enabled"),
    "NEXUS_DISCOVERY": ("discovery", "enabled"),
    "NEXUS_LOG_LEVEL": ("logging", "level"),
    "NEXUS_LOG_FORMAT": ("logging", "format"),
}
"""Environment variable → the setting that it overrides. `NEXUS_CONFIG` names the file itself."""

NOT_SUPPORTED: dict[str, str] = {
    "discovery": "backends are taken from the file only",
    "quality.ttft_penalty_threshold_ms": "a slow first token costs a backend nothing",
    "quality.ttft_threshold_ms": "a slow first token costs a backend nothing",
    "quality.metrics_interval_seconds": "failures count for ten seconds",
    "quality.enabled": "[circuit_breaker] enabled says whether failing backends are taken out",
    "quality.window_1h": "/v1/stats has the last hour, of a fixed length",
    "quality.window_24h": "/v1/stats has the last day, of a fixed length",
    "quality.update_interval": "failures count for ten seconds",
    "queue.priority_header": "the header is X-Nexus-Priority",
    "routing.policies.max_cost_per_request": "the cost of a request is not limited",
    "lifecycle": "models are neither loaded nor moved",
    "fleet": "no recommendations are made",
    "routing.budget.reconciliation_interval_secs": "a request is counted when it ends",
}
"""Keys that are accepted and checked, but not supported yet → what holds instead."""

RESTART_ONLY: tuple[str, ...] = (
    "server.host",
    "server.port",
    "server.workers",
    "server.run_dir",
    "server.state_dir",
    "server.graceful_timeout_seconds",
    "health_check.listen",
)
"""Settings that only a restart applies: processes and ports take them when they start."""
