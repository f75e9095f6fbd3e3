"""Records of backends and of their models."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nexus.config.fields import (
    BackendType,
    Count,
    Dialect,
    ModelName,
    Seconds,
    Section,
    Task,
    Text,
    TranslationName,
    Zone,
    doc,
)
from nexus.providers import PROVIDERS, Provider

_Name = Annotated[str, Meta(min_length=1, max_length=128)]
_Tokens = Annotated[int, Meta(ge=1, le=1 << 40)]


class ModelConfig(Section, frozen=True):
    """A model of a backend; overrides what the backend reports, and adds a missing model."""

    name: Annotated[
        ModelName,
        doc("The model's name for clients, and at the backend if `upstream` says nothing else."),
    ]
    upstream: Annotated[
        ModelName | None,
        doc("Its name at the backend, if that is another; clients cannot use this one."),
    ] = None
    context_length: Annotated[
        _Tokens | None, doc("Its context in tokens; unset: as the backend reports.")
    ] = None
    max_output_tokens: Annotated[
        _Tokens | None,
        doc(
            "The most tokens of a response, for translated requests that state none or more; "
            "unset: as the backend reports."
        ),
    ] = None
    vision: Annotated[
        bool | None, doc("Whether it takes images; unset: as the backend reports.")
    ] = None
    tools: Annotated[bool | None, doc("Whether it calls tools; unset: as the backend reports.")] = (
        None
    )
    json_mode: Annotated[
        bool | None,
        doc('Whether it takes response_format "json_object"; unset: as the backend reports.'),
    ] = None
    tasks: Annotated[
        list[Task],
        doc("All its tasks; it gets no requests of others. Empty: as the backend reports."),
    ] = msgspec.field(default_factory=list)
    aliases: Annotated[
        list[str],
        doc("Other names by which clients may request it. Empty: as the backend reports."),
    ] = msgspec.field(default_factory=list)


class BackendConfig(Section, frozen=True):
    """One backend of the fleet."""

    name: Annotated[
        _Name,
        doc("Unique name, shown to clients and in metrics."),
    ]
    url: Annotated[
        str,
        doc(
            "Base URL, http:// or https://. A path is used as written; without one, /v1 is "
            "appended."
        ),
    ]
    type: Annotated[BackendType, doc("What kind of server it is.")] = "generic"
    priority: Annotated[
        int,
        Meta(ge=-(1 << 31), le=(1 << 31) - 1),
        doc("Lower is preferred; the smart strategy clips it to 0 to 100."),
    ] = 50
    api_key_env: Annotated[
        Text | None,
        doc("Environment variable or systemd credential that holds the key sent to this backend."),
    ] = None
    auth_header: Annotated[
        Literal["authorization", "x-api-key", "api-key"] | None,
        doc(
            "Header that carries the key of api_key_env: in authorization as `Bearer KEY`, "
            "else alone; unset: as its type has it."
        ),
    ] = None
    account: Annotated[
        _Name | None,
        doc(
            "Name of its account at the vendor. Backends of one account can read what each "
            "other encrypted in responses; unset: an account of its own."
        ),
    ] = None
    zone: Annotated[
        Zone | None, doc("Privacy zone; unset: restricted for local kinds, open for cloud ones.")
    ] = None
    tier: Annotated[int, Meta(ge=1, le=5), doc("Capability tier.")] = 1
    max_concurrent: Annotated[
        Count | None, doc("Requests in flight that it takes; unset: as it reports, else no limit.")
    ] = None
    forward_authorization: Annotated[
        bool | None,
        doc(
            "Forward the client's own key, from any usual header; unset: for kind openai "
            "without api_key_env."
        ),
    ] = None
    connect_timeout_seconds: Annotated[
        Seconds, doc("Limit for connecting, over all its addresses.")
    ] = 5.0
    first_byte_timeout_seconds: Annotated[
        Seconds | None,
        doc(
            "Limit for the first byte of a response, or the first content of a stream; a ping "
            "restarts it. Unset: [server] request_timeout_seconds."
        ),
    ] = None
    idle_timeout_seconds: Annotated[
        Seconds | None,
        doc("Longest silence within a response; unset: [server] request_timeout_seconds."),
    ] = None
    total_timeout_seconds: Annotated[
        Seconds | None,
        doc(
            "Limit for a whole request, streams included; unset: [server] "
            "request_timeout_seconds, and none for a stream that has started."
        ),
    ] = None
    stream_usage: Annotated[
        bool,
        doc(
            "Request token usage in streams if the client does not; a backend that rejects this "
            "is not asked again."
        ),
    ] = True
    keepalive_seconds: Annotated[
        Seconds, doc("How long an idle connection to it is kept for reuse.")
    ] = 3.5
    max_connection_age_seconds: Annotated[
        Seconds,
        doc(
            "How old a connection may get before it is replaced, so that DNS changes are followed."
        ),
    ] = 30.0
    base_path: Annotated[
        str | None, doc('Path of its OpenAI endpoints, instead of the one in url; "" for none.')
    ] = None
    dialects: Annotated[
        list[Dialect],
        doc(
            "APIs of clients that it speaks itself. Empty: those of its type, and those whose path "
            "it knows: it is asked once, and again after its version has changed."
        ),
    ] = msgspec.field(default_factory=list)
    drop_fields: Annotated[
        list[Text],
        doc("Fields at the top level of JSON bodies that it does not get."),
    ] = msgspec.field(default_factory=list)
    drop_betas: Annotated[
        list[Text],
        doc('Features in `anthropic-beta` that it does not get; globs, such as "context-*".'),
    ] = msgspec.field(default_factory=list)
    strip_attribution: Annotated[
        bool | None,
        doc(
            "Leave out the line of Claude Code in the system text that begins with "
            "`x-anthropic-billing-header:` and differs with each request; unset: for types "
            "that run models themselves, whose caches of prompts it would defeat."
        ),
    ] = None
    translate: Annotated[
        bool | list[TranslationName],
        doc(
            "Serve clients whose API it does not speak by translation, or only by those listed. "
            "If none is allowed, they get 404 unless another backend has the model."
        ),
    ] = True
    query: Annotated[dict[str, str], doc("Added to the query of every request to it.")] = (
        msgspec.field(default_factory=dict)
    )
    ca_file: Annotated[
        Text | None, doc("File with the CAs to trust for it; unset: the system's.")
    ] = None
    client_cert_file: Annotated[
        Text | None, doc("File with the client certificate and its chain.")
    ] = None
    client_key_file: Annotated[
        Text | None,
        doc("File with the client certificate's key; unset: client_cert_file holds it."),
    ] = None
    lists_models: Annotated[
        bool,
        doc(
            "Ask it for a list of its models; false: only those in [[backends.models]] are known, "
            "and it counts as healthy until requests fail."
        ),
    ] = msgspec.field(default=True, name="list")
    discover_models: Annotated[
        bool, doc("Offer the models that it lists; false: only those in [[backends.models]].")
    ] = True
    models: list[ModelConfig] = msgspec.field(default_factory=list)

    @property
    def provider(self) -> Provider:
        """What its kind is."""
        return PROVIDERS[self.type]

    @property
    def strips_attribution(self) -> bool:
        """Whether Claude Code's line at the start of the system text is left out."""
        stated = self.strip_attribution
        return self.provider.self_hosted if stated is None else stated

    @property
    def accepts_client_keys_by_default(self) -> bool:
        """Whether its kind alone decides that clients' own keys are sent to it."""
        return (
            self.forward_authorization is None
            and self.api_key_env is None
            and self.provider.accepts_client_keys
        )
