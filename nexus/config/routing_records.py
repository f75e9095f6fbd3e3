"""Records of the sections that decide which backend serves a request."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nexus.config.fields import BackendType, Count, Seconds, Section, Strategy, doc


class Weights(Section, frozen=True):
    """Weights of the smart strategy's score."""

    priority: Annotated[int, Meta(ge=0, le=1000), doc("Weight of the backend's priority.")] = 50
    load: Annotated[int, Meta(ge=0, le=1000), doc("Weight of its requests in flight.")] = 30
    latency: Annotated[int, Meta(ge=0, le=1000), doc("Weight of its probe latency.")] = 20


class Policy(Section, frozen=True):
    """Constraints on the backends of a model. If several policies match, all apply."""

    model_pattern: Annotated[
        str | None,
        doc("Glob over the model's name, as requested or after aliases; unset: every model."),
    ] = None
    privacy: Annotated[
        Literal["restricted", "unrestricted"],
        doc("restricted keeps requests on restricted backends."),
    ] = "unrestricted"
    min_tier: Annotated[
        Annotated[int, Meta(ge=1, le=5)] | None,
        doc("Lowest tier that may serve; X-Nexus-Flexible lets a client accept lower ones."),
    ] = None
    fallback_allowed: Annotated[
        bool, doc("Let another model of the fallback chain serve if no backend has this one.")
    ] = True
    max_cost_per_request: Annotated[
        Annotated[float, Meta(ge=0)] | None, doc("Limit for one request in US dollars.")
    ] = None


class CloudBudget(Section, frozen=True):
    """A budget for what cloud backends cost. `[[budgets]]` can do more."""

    monthly_limit_usd: Annotated[
        Annotated[float, Meta(ge=0)] | None, doc("Limit per calendar month in US dollars.")
    ] = None
    soft_limit_percent: Annotated[
        float, Meta(ge=0, le=100), doc("Share of the limit that warns.")
    ] = 75.0
    hard_limit_action: Annotated[
        Literal["warn", "block_cloud", "block_all"],
        doc(
            "What happens at the limit. warn: nothing. block_cloud: only other backends serve. "
            "block_all: requests are refused that a cloud backend could serve; once all is spent, "
            "every request."
        ),
    ] = "warn"
    reconciliation_interval_secs: Annotated[Seconds, doc("Time between two reconciliations.")] = (
        60.0
    )


SESSION_HEADERS = (
    "x-claude-code-session-id", "session-id", "session_id", "thread-id", "conversation_id",
    "x-session-affinity", "x-opencode-session", "x-session-id", "x-amp-thread-id",
)  # fmt: skip
"""Headers in which agents name their session; Claude Code sends the first, Codex the second."""


class Affinity(Section, frozen=True):
    """Brings a conversation back to the backend that has its prompt cached."""

    enabled: Annotated[bool, doc("Use it, with the strategies smart and priority_only.")] = True
    headers: Annotated[
        list[str], doc("Request headers that can name the session; the first one sent counts.")
    ] = msgspec.field(default_factory=lambda: list(SESSION_HEADERS))
    body: Annotated[
        list[str], doc("Fields of the body that can name it; a dot leads into an object.")
    ] = msgspec.field(default_factory=lambda: ["prompt_cache_key", "metadata.user_id"])
    prefix_bytes: Annotated[
        int,
        Meta(ge=0, le=65536),
        doc(
            "Without a name, the session is known by so many bytes of tools, system text and first "
            "message, if the prompt has 512 bytes. 0: prompts are not looked at."
        ),
    ] = 4096
    scope: Annotated[
        Literal["key", "none"],
        doc("key: sessions of different client keys never meet; none: keys share sessions."),
    ] = "key"
    load_factor: Annotated[
        float,
        Meta(ge=1, le=100),
        doc("How many times its part of the requests in flight a backend may have."),
    ] = 1.25
    load_margin: Annotated[
        int,
        Meta(ge=0, le=10_000),
        doc(
            "How many requests more than the least loaded one it may always have; twice as many "
            "for a prompt whose start it has, four times for a long start."
        ),
    ] = 2
    kinds: Annotated[
        list[BackendType],
        doc("Kinds of backend that cache prompts."),
    ] = msgspec.field(default_factory=lambda: ["vllm", "sglang", "llamacpp", "ollama", "lmstudio"])


class Routing(Section, frozen=True):
    """Which backend serves a request."""

    strategy: Annotated[Strategy, doc("How a backend is chosen among those that can serve.")] = (
        "smart"
    )
    max_retries: Annotated[
        int,
        Meta(ge=0, le=10),
        doc("How many further backends are tried after a failure."),
    ] = 2
    weights: Weights = Weights()
    affinity: Affinity = Affinity()
    aliases: Annotated[
        dict[str, str], doc("Other names for models; resolved up to three steps.")
    ] = msgspec.field(default_factory=dict)
    fallbacks: Annotated[
        dict[str, list[str]], doc("Models tried in order if a model has no usable backend.")
    ] = msgspec.field(default_factory=dict)
    policies: list[Policy] | dict[str, Policy] = msgspec.field(default_factory=list)
    budget: CloudBudget = CloudBudget()


class CircuitBreaker(Section, frozen=True):
    """Skips a failing backend for a while; all workers share the state."""

    enabled: Annotated[bool, doc("Skip failing backends.")] = True
    failures: Annotated[
        Count,
        doc(
            "Failed requests in a row that open it; or within ten seconds, if they are also "
            "error_rate_threshold of all."
        ),
    ] = 5
    open_seconds: Annotated[
        Seconds,
        doc("How long it stays open before a half-open probe; doubled each time the probe fails."),
    ] = 5.0
    max_open_seconds: Annotated[Seconds, doc("Upper limit of that time.")] = 60.0
    slow_start_seconds: Annotated[
        Seconds,
        doc("How long a recovered backend takes to get its full share of traffic."),
    ] = 10.0


class Quality(Section, frozen=True):
    """Backend quality, from the results of requests."""

    error_rate_threshold: Annotated[
        float, Meta(ge=0, le=1), doc("Share of failed attempts at which a circuit opens.")
    ] = 0.5
    ttft_penalty_threshold_ms: Annotated[int, Meta(ge=0), doc("A later first token is slow.")] = (
        3000
    )
    ttft_threshold_ms: Annotated[
        Annotated[int, Meta(ge=0)] | None, doc("Older name of ttft_penalty_threshold_ms.")
    ] = None
    metrics_interval_seconds: Annotated[Seconds, doc("Time between two evaluations.")] = 30.0
    enabled: Annotated[bool, doc("Evaluate the quality of backends.")] = True
    window_1h: Annotated[str | float | None, doc("Length of the short window.")] = None
    window_24h: Annotated[str | float | None, doc("Length of the long window.")] = None
    update_interval: Annotated[str | float | None, doc("Time between two evaluations.")] = None


class Queue(Section, frozen=True):
    """The queue of requests whose possible backends are all at their limits."""

    enabled: Annotated[bool, doc("Let requests wait.")] = True
    max_size: Annotated[
        int,
        Meta(ge=0, le=1_000_000),
        doc("Requests that may wait, over all workers; further ones get 503. 0: none."),
    ] = 100
    max_wait_seconds: Annotated[Seconds, doc("Longest wait; then the response is 503.")] = 30.0
    order: Annotated[
        Literal["fair", "arrival"],
        doc(
            "Among requests of the same priority. fair: the key that has used the fewest tokens "
            "for its team's weight is next; without keys, as arrival."
        ),
    ] = "fair"
    default_timeout_seconds: Annotated[Seconds | None, doc("Older name of max_wait_seconds.")] = (
        None
    )
    max_queue_size: Annotated[
        Annotated[int, Meta(ge=0, le=1_000_000)] | None, doc("Older name of max_size.")
    ] = None
    priority_header: Annotated[str, doc("Request header that gives the priority.")] = (
        "X-Nexus-Priority"
    )

    @property
    def max_waiting(self) -> int:
        """The requests that may wait; 0 if the queue is off."""
        size = self.max_size if self.max_queue_size is None else self.max_queue_size
        return size if self.enabled else 0

    @property
    def max_wait_s(self) -> float:
        return self.default_timeout_seconds or self.max_wait_seconds
