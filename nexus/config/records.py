"""The configuration as a frozen tree of records: keys, defaults, limits and one line of documentation each.

This is the one table of settings. Loading, validation, `nexus config init` and the documentation read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from nexus.providers import PROVIDERS, Provider

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]

if TYPE_CHECKING:
    BackendType = str
else:
    # The registered kinds, so that messages, pages and completions list them.
    BackendType = Literal[tuple(PROVIDERS)]
Zone = Literal["open", "internal", "confidential", "restricted"]
LogLevel = Literal["trace", "debug", "info", "warn", "error"]
LogFormat = Literal["pretty", "json"]
Task = Literal["chat", "embeddings", "rerank", "classify", "images", "transcription", "speech"]
Strategy = Literal["smart", "round_robin", "priority_only", "random"]

MAX_ALIAS_DEPTH = 3
MAX_BACKENDS = 500
"""The load table has columns for so many, and some left for those that were just removed."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file; the keys keep their names from the file."""


def _doc(text: str) -> Meta:
    return Meta(description=text)


class Server(Section, frozen=True):
    """Where the gateway listens and what one request may take."""

    host: Annotated[str, Meta(min_length=1), _doc("Address to listen on.")] = "0.0.0.0"
    port: Annotated[int, Meta(ge=1, le=65535), _doc("Port to listen on.")] = 8000
    workers: Annotated[
        int,
        Meta(ge=0, le=250),
        _doc("Worker processes; 0 takes one per usable core, as affinity and CPU quota allow."),
    ] = 0
    run_dir: Annotated[
        str,
        _doc(
            "Directory shared by all processes of this gateway; empty takes $RUNTIME_DIRECTORY, "
            "else one of your user's, named by the port."
        ),
    ] = ""
    request_timeout_seconds: Annotated[
        Seconds,
        _doc(
            "Limit for a whole answer; for a stream, the limit for its first byte and for any silence within it."
        ),
    ] = 300.0
    max_concurrent_requests: Annotated[
        Count, _doc("Requests in flight over all workers; more are answered 503.")
    ] = 1000
    max_request_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 30),
        _doc("Largest request body accepted; a larger one is answered 413."),
    ] = 32 * 1024 * 1024
    max_buffered_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 40),
        _doc(
            "Bytes of bodies and answers in progress that one worker holds; more are answered 503."
        ),
    ] = 512 * 1024 * 1024
    body_timeout_seconds: Annotated[
        Seconds, _doc("How long a whole request body may take; a slower one is answered 408.")
    ] = 300.0
    min_body_bytes_per_second: Annotated[
        int,
        Meta(ge=0, le=1 << 30),
        _doc(
            "Least rate of a request body, after its first five seconds; a slower one is answered 408. 0: none."
        ),
    ] = 240
    max_answer_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 32),
        _doc("Largest whole answer of a backend; a larger one is answered 502."),
    ] = 64 * 1024 * 1024
    client_timeout_seconds: Annotated[
        Seconds,
        _doc(
            "How long a client may take between two packets of its request or of its reading the answer."
        ),
    ] = 60.0
    stream_keepalive_seconds: Annotated[
        float,
        Meta(ge=0, le=3600),
        _doc(
            "Send a comment to a client that waits so long for a stream to begin, and again each time; 0 sends none. "
            "Its head is then out, and a failure is told within the stream. A backend's own pings do not go on then."
        ),
    ] = 0.0
    graceful_timeout_seconds: Annotated[
        Annotated[int, Meta(ge=1, le=86400)],
        _doc("How long requests in progress may go on when the gateway is stopped."),
    ] = 30
    drain_timeout_seconds: Annotated[
        Annotated[int, Meta(ge=1, le=86400)],
        _doc(
            "How long requests of a replaced worker (HUP, TTOU, recycling) may go on while others serve."
        ),
    ] = 3600


class Discovery(Section, frozen=True):
    """Finding backends on the local network (mDNS)."""

    enabled: Annotated[bool, _doc("Look for backends on the network.")] = True
    service_types: Annotated[list[str], _doc("mDNS service types to browse.")] = msgspec.field(
        default_factory=lambda: ["_ollama._tcp.local", "_llm._tcp.local"]
    )
    grace_period_seconds: Annotated[Seconds, _doc("How long a vanished backend is kept.")] = 60.0


class HealthCheck(Section, frozen=True):
    """How the health process probes the backends."""

    enabled: Annotated[
        bool,
        _doc(
            "Let probes decide which backends are healthy. Without it every backend counts as healthy, and probes only "
            "find its models."
        ),
    ] = True
    interval_seconds: Annotated[Seconds, _doc("Time between two probes of a backend.")] = 30.0
    timeout_seconds: Annotated[Seconds, _doc("Limit for one probe.")] = 5.0
    failure_threshold: Annotated[
        Count, _doc("Failed probes in a row that make a backend unhealthy.")
    ] = 3
    recovery_threshold: Annotated[
        Count, _doc("Good probes in a row that make it healthy again.")
    ] = 2
    watchdog_seconds: Annotated[
        float,
        Meta(ge=2, le=3600),
        _doc("`nexus serve` replaces a health process whose event loop has not moved for so long."),
    ] = 20.0
    listen: Annotated[
        str,
        _doc(
            'Address of the health process\'s own /metrics and /v1/stats, as host:port; "off" for none.'
        ),
    ] = "127.0.0.1:9464"


class Weights(Section, frozen=True):
    """Weights of the smart strategy's score."""

    priority: Annotated[int, Meta(ge=0, le=1000), _doc("Weight of the backend's priority.")] = 50
    load: Annotated[int, Meta(ge=0, le=1000), _doc("Weight of its requests in flight.")] = 30
    latency: Annotated[int, Meta(ge=0, le=1000), _doc("Weight of its probe latency.")] = 20


class Policy(Section, frozen=True):
    """What a model's requests demand of the backends. Where several policies match, all of them hold."""

    model_pattern: (
        Annotated[str, _doc("Glob over the model's name, as asked and after aliases; unset: all.")]
        | None
    ) = None
    privacy: Annotated[
        Literal["restricted", "unrestricted"],
        _doc("restricted keeps requests on restricted backends."),
    ] = "unrestricted"
    min_tier: (
        Annotated[
            int,
            Meta(ge=1, le=5),
            _doc("Lowest tier that may serve; X-Nexus-Flexible lets a client go below."),
        ]
        | None
    ) = None
    fallback_allowed: Annotated[
        bool, _doc("Let another model of the fallback chain serve when no backend has this one.")
    ] = True
    max_cost_per_request: (
        Annotated[float, Meta(ge=0), _doc("Limit for one request in US dollars.")] | None
    ) = None


class Budget(Section, frozen=True):
    """Spending limit for cloud backends."""

    monthly_limit_usd: (
        Annotated[float, Meta(ge=0), _doc("Limit per calendar month in US dollars.")] | None
    ) = None
    soft_limit_percent: Annotated[
        float, Meta(ge=0, le=100), _doc("Share of the limit that warns.")
    ] = 75.0
    hard_limit_action: Annotated[
        Literal["warn", "block_cloud", "block_all"], _doc("What happens at the limit.")
    ] = "warn"
    reconciliation_interval_secs: Annotated[Seconds, _doc("Time between two reconciliations.")] = (
        60.0
    )


class Routing(Section, frozen=True):
    """Which backend serves a request."""

    strategy: Annotated[Strategy, _doc("How a backend is chosen among those that can serve.")] = (
        "smart"
    )
    max_retries: Annotated[
        int,
        Meta(ge=0, le=10),
        _doc("Further backends tried after a failure that another backend may not have."),
    ] = 2
    weights: Weights = Weights()
    aliases: Annotated[
        dict[str, str], _doc("Other names for models; resolved up to three deep.")
    ] = msgspec.field(default_factory=dict)
    fallbacks: Annotated[
        dict[str, list[str]], _doc("Models tried in order when a model has no usable backend.")
    ] = msgspec.field(default_factory=dict)
    policies: list[Policy] | dict[str, Policy] = msgspec.field(default_factory=list)
    budget: Budget = Budget()


class ModelConfig(Section, frozen=True):
    """What a backend does not say of a model, or says wrongly; what is stated here wins, and adds a model that it does
    not list."""

    name: Annotated[
        str, Meta(min_length=1, max_length=256), _doc("The model's name at the backend.")
    ]
    context_length: (
        Annotated[
            int, Meta(ge=1, le=1 << 40), _doc("Its context in tokens; unset: as the backend says.")
        ]
        | None
    ) = None
    vision: Annotated[bool, _doc("Whether it takes images; unset: as the backend says.")] | None = (
        None
    )
    tools: Annotated[bool, _doc("Whether it calls tools; unset: as the backend says.")] | None = (
        None
    )
    json_mode: (
        Annotated[
            bool,
            _doc('Whether it takes response_format "json_object"; unset: as the backend says.'),
        ]
        | None
    ) = None
    tasks: Annotated[
        list[Task],
        _doc(
            "All that it is for; requests of other tasks are not sent to it. Empty: as the backend says."
        ),
    ] = msgspec.field(default_factory=list)
    aliases: Annotated[
        list[str], _doc("Other names by which clients may ask for it. Empty: as the backend says.")
    ] = msgspec.field(default_factory=list)


class BackendConfig(Section, frozen=True):
    """One backend of the fleet."""

    name: Annotated[
        str,
        Meta(min_length=1, max_length=128),
        _doc("Unique name, shown to clients and in metrics."),
    ]
    url: Annotated[
        str,
        _doc(
            "Base address, http:// or https://. A path is used as written; without one, /v1 is appended."
        ),
    ]
    type: Annotated[BackendType, _doc("What kind of server it is.")] = "generic"
    priority: Annotated[
        int,
        Meta(ge=-(1 << 31), le=(1 << 31) - 1),
        _doc(
            "Lower is preferred; the smart strategy takes what is outside 0 to 100 as the nearer of these."
        ),
    ] = 50
    api_key_env: (
        Annotated[
            str,
            Meta(min_length=1),
            _doc(
                "Environment variable, or systemd credential, that holds the key sent to this backend."
            ),
        ]
        | None
    ) = None
    zone: (
        Annotated[
            Zone, _doc("Privacy zone; unset: restricted for local kinds, open for cloud ones.")
        ]
        | None
    ) = None
    tier: Annotated[int, Meta(ge=1, le=5), _doc("Capability tier.")] = 1
    max_concurrent: (
        Annotated[
            Count,
            _doc("Requests in flight that it takes; unset: as many as it tells, else no limit."),
        ]
        | None
    ) = None
    forward_authorization: (
        Annotated[
            bool,
            _doc(
                "Send the client's own key on, under any usual header; unset: for kind openai without api_key_env."
            ),
        ]
        | None
    ) = None
    connect_timeout_seconds: Annotated[
        Seconds, _doc("Limit for reaching the backend, over all its addresses.")
    ] = 5.0
    first_byte_timeout_seconds: (
        Annotated[
            Seconds,
            _doc(
                "Limit for the first byte of its answer, or the first content of a stream; a ping of the stream starts "
                "it anew. Unset: [server] request_timeout_seconds."
            ),
        ]
        | None
    ) = None
    idle_timeout_seconds: (
        Annotated[
            Seconds,
            _doc("Longest silence within an answer; unset: [server] request_timeout_seconds."),
        ]
        | None
    ) = None
    total_timeout_seconds: (
        Annotated[
            Seconds,
            _doc(
                "Limit for a request from its start to its end, streams included; unset: [server] "
                "request_timeout_seconds, and none for a stream that has begun."
            ),
        ]
        | None
    ) = None
    stream_usage: Annotated[
        bool,
        _doc(
            "Ask it for the token usage of streams where the client does not; what it does not take, it is not asked."
        ),
    ] = True
    keepalive_seconds: Annotated[
        Seconds, _doc("How long an idle connection to it is kept for reuse.")
    ] = 3.5
    max_connection_age_seconds: Annotated[
        Seconds,
        _doc(
            "How old a connection to it may get before it is replaced; a changed DNS record is then followed."
        ),
    ] = 30.0
    base_path: (
        Annotated[
            str, _doc('Path of its OpenAI endpoints, in place of the one in url; "" for none.')
        ]
        | None
    ) = None
    query: Annotated[dict[str, str], _doc("Added to the query of every request to it.")] = (
        msgspec.field(default_factory=dict)
    )
    ca_file: (
        Annotated[
            str,
            Meta(min_length=1),
            _doc("File with the CAs to trust for it; unset: those of the system."),
        ]
        | None
    ) = None
    client_cert_file: (
        Annotated[
            str,
            Meta(min_length=1),
            _doc("File with the certificate, and its chain, that we show it."),
        ]
        | None
    ) = None
    client_key_file: (
        Annotated[
            str,
            Meta(min_length=1),
            _doc("File with that certificate's key; unset: in client_cert_file."),
        ]
        | None
    ) = None
    discover_models: Annotated[
        bool, _doc("Offer the models that it lists; false: only those of [[backends.models]].")
    ] = True
    models: list[ModelConfig] = msgspec.field(default_factory=list)

    @property
    def provider(self) -> Provider:
        """What its kind is."""
        return PROVIDERS[self.type]

    @property
    def accepts_client_keys_by_default(self) -> bool:
        """Whether its kind alone decides that clients' own keys are sent to it."""
        return (
            self.forward_authorization is None
            and self.api_key_env is None
            and self.provider.accepts_client_keys
        )


class CircuitBreaker(Section, frozen=True):
    """Taking a backend out for a while when requests to it fail; what one worker learns holds for all."""

    enabled: Annotated[bool, _doc("Take failing backends out of the choice.")] = True
    failures: Annotated[
        Count,
        _doc(
            "Failed requests within ten seconds before it opens, if they also are error_rate_threshold of all."
        ),
    ] = 5
    open_seconds: Annotated[
        Seconds,
        _doc(
            "How long it stays open before one request may try; doubled each time that one fails."
        ),
    ] = 5.0
    max_open_seconds: Annotated[Seconds, _doc("The longest that it grows to.")] = 60.0
    slow_start_seconds: Annotated[
        Seconds,
        _doc("How long a backend that recovered takes to get its whole share of traffic back."),
    ] = 10.0


class Quality(Section, frozen=True):
    """Judging backends by what requests see."""

    error_rate_threshold: Annotated[
        float, Meta(ge=0, le=1), _doc("Share of failed attempts from which a circuit opens.")
    ] = 0.5
    ttft_penalty_threshold_ms: Annotated[
        int, Meta(ge=0), _doc("First token later than this is slow.")
    ] = 3000
    ttft_threshold_ms: (
        Annotated[int, Meta(ge=0), _doc("Older name of ttft_penalty_threshold_ms.")] | None
    ) = None
    metrics_interval_seconds: Annotated[Seconds, _doc("Time between two judgements.")] = 30.0
    enabled: Annotated[bool, _doc("Judge backends by their quality.")] = True
    window_1h: Annotated[str | float, _doc("Length of the short window.")] | None = None
    window_24h: Annotated[str | float, _doc("Length of the long window.")] | None = None
    update_interval: Annotated[str | float, _doc("Time between two judgements.")] | None = None


class Queue(Section, frozen=True):
    """Waiting when every backend that could serve is at its limit."""

    enabled: Annotated[bool, _doc("Let requests wait.")] = True
    max_size: Annotated[
        int,
        Meta(ge=0, le=1_000_000),
        _doc("Requests that may wait, over all workers; more are answered 503. 0 lets none wait."),
    ] = 100
    max_wait_seconds: Annotated[Seconds, _doc("Longest wait; then the answer is 503.")] = 30.0
    default_timeout_seconds: Annotated[Seconds, _doc("Older name of max_wait_seconds.")] | None = (
        None
    )
    max_queue_size: (
        Annotated[int, Meta(ge=0, le=1_000_000), _doc("Older name of max_size.")] | None
    ) = None
    priority_header: Annotated[str, _doc("Request header that gives the priority.")] = (
        "X-Nexus-Priority"
    )

    @property
    def max_waiting(self) -> int:
        """The requests that may wait; 0 where the queue is off."""
        size = self.max_size if self.max_queue_size is None else self.max_queue_size
        return size if self.enabled else 0

    @property
    def max_wait_s(self) -> float:
        return self.default_timeout_seconds or self.max_wait_seconds


class Logging(Section, frozen=True):
    """What is logged, to standard error."""

    level: Annotated[
        LogLevel,
        _doc(
            'Least severe level logged; request lines are info. "info,nexus::health=debug" sets component_levels too.'
        ),
    ] = "info"
    format: Annotated[LogFormat, _doc("pretty for people, json for machines.")] = "pretty"
    component_levels: Annotated[
        dict[str, LogLevel], _doc("Levels by component, such as health or proxy.")
    ] = msgspec.field(default_factory=dict)
    enable_content_logging: Annotated[
        bool, _doc("Accepted from older files and ignored: prompts and answers are never logged.")
    ] = False


class Metrics(Section, frozen=True):
    """Bounds on the number of series."""

    max_models: Annotated[
        Count,
        _doc(
            "Model names that have a label value at once; the rest become `other`. The first half goes to models as "
            "they are discovered, the second half to those that are asked for."
        ),
    ] = 500
    max_backends: Annotated[
        Annotated[int, Meta(ge=1, le=500)],
        _doc("Backend names that have a label value at once; the rest become `other`."),
    ] = 200
    retire_after_hours: Annotated[
        float,
        Meta(gt=0, le=8760),
        _doc(
            "How long a model or backend must be gone until its label value is free for others; what it counted is "
            "then shown as `retired`."
        ),
    ] = 24.0


class Dashboard(Section, frozen=True):
    """The page that shows the fleet, and where it is served."""

    enabled: Annotated[
        bool, _doc("Serve the dashboard at /, and what it is made of at /v1/history and /v1/live.")
    ] = True
    operations_only: Annotated[
        bool,
        _doc(
            "Serve it at the health process's address ([health_check] listen) alone, not where clients come."
        ),
    ] = False


class Admin(Section, frozen=True):
    """Who may see and change the gateway. Without a token of yours, changes take the one in the run directory."""

    token_env: Annotated[
        str,
        Meta(min_length=1),
        _doc("Environment variable, or systemd credential, that holds the operators' token."),
    ] = "NEXUS_ADMIN_TOKEN"
    protect: Annotated[
        list[Literal["dashboard", "metrics"]],
        _doc(
            "What asks for the token, where there is one: the dashboard, /v1/history and /v1/live; /metrics, "
            "/v1/stats and /v1/problems. Changes always do."
        ),
    ] = msgspec.field(default_factory=lambda: ["dashboard"])
    hosts: Annotated[
        list[str],
        _doc(
            "Further names by which the operations port is reached, such as that of a proxy in front of it. IP "
            "addresses, localhost and the machine's own names are always accepted."
        ),
    ] = msgspec.field(default_factory=list)
    api_key_envs: Annotated[
        list[str],
        _doc(
            "Names that api_key_env may have in a backend that is added to the running gateway, besides those "
            "that the file uses."
        ),
    ] = msgspec.field(default_factory=list)


class Cors(Section, frozen=True):
    """Which web pages may use the gateway from a browser. Pages of other origins are refused with 403."""

    origins: Annotated[
        list[str],
        _doc(
            'Origins whose pages may send requests, such as "https://chat.example.com"; "*" for every page.'
        ),
    ] = msgspec.field(default_factory=list)
    max_age_seconds: Annotated[
        Annotated[int, Meta(ge=0, le=86400)],
        _doc("How long a browser may remember that an origin is allowed."),
    ] = 600


class Config(Section, frozen=True):
    """The whole configuration."""

    server: Server = Server()
    cors: Cors = Cors()
    discovery: Discovery = Discovery()
    health_check: HealthCheck = HealthCheck()
    routing: Routing = Routing()
    backends: list[BackendConfig] = msgspec.field(default_factory=list)
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    quality: Quality = Quality()
    queue: Queue = Queue()
    logging: Logging = Logging()
    metrics: Metrics = Metrics()
    dashboard: Dashboard = Dashboard()
    admin: Admin = Admin()
    lifecycle: Annotated[dict[str, Any], _doc("Model lifecycle.")] = msgspec.field(
        default_factory=dict
    )
    fleet: Annotated[dict[str, Any], _doc("Fleet recommendations.")] = msgspec.field(
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
    "routing.budget": "spending is not limited",
}
"""Sections that are accepted and checked, whose feature does not exist yet → what that means."""

RESTART_ONLY: tuple[str, ...] = (
    "server.host",
    "server.port",
    "server.workers",
    "server.run_dir",
    "server.graceful_timeout_seconds",
    "health_check.listen",
)
"""Settings that a reload does not change: processes and ports hold them from their start."""
