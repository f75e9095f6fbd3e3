"""The table of faults: the client's status, whether to retry, and whether the backend is blamed.

Router, proxy, metrics, log, and documentation read the same rows. Code that detects a fault raises
`RequestFailed` with its code:

    Exception
    ├── RequestFailed        ends an attempt or a request; the fault decides what follows
    │   ├── AtCapacity       routing/router.py: wait in the queue
    │   └── Refused          proxy/limits.py: 429 with the state of the limits
    ├── ClientGone           http/client_watch.py: the client has disconnected
    └── MalformedResponse    http/response_parser.py: becomes the fault `malformed_answer`
    BaseException
    └── Stopping             http/client_watch.py: the grace period of a stop has ended
        └── KeyBlocked       http/client_watch.py: the operators have ended the request
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Blame(Enum):
    """Who is to blame, for the circuit breakers."""

    CLIENT = "client"
    BACKEND = "backend"
    BUSY = "busy"
    GATEWAY = "gateway"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One row.

    Attributes:
        status: What the client gets and what is counted; None forwards the backend's response.
        error_type: The label value in `nexus_errors_total`.
        retry: Whether another backend is tried.
        retry_same: Whether, after a pause, the same backend may be tried if no other can serve.
        stream_end: The label value in `nexus_stream_ends_total`, for faults within a stream.
        per_model: Whether only the requested model of a busy backend is busy.
    """

    code: str
    status: int | None
    error_type: str
    retry: bool = False
    retry_same: bool = False
    stream_end: str | None = None
    blame: Blame = Blame.CLIENT
    per_model: bool = False
    description: str


def _rows(*faults: Fault) -> dict[str, Fault]:
    return {fault.code: fault for fault in faults}


# fmt: off
_CLIENT = _rows(
    Fault(code="invalid_json", status=400, error_type="parse_error", description="The body is not JSON."),
    Fault(code="invalid_request", status=400, error_type="invalid_request", description="The body lacks a field or has a wrong one."),
    Fault(code="body_cut_short", status=400, error_type="invalid_request", description="The body ended before its Content-Length."),
    Fault(code="body_malformed", status=400, error_type="invalid_request", description="The body's transfer coding or its content encoding is broken."),
    Fault(code="body_too_slow", status=408, error_type="invalid_request", description="The body did not arrive in time, or below the minimum rate."),
    Fault(code="body_too_large", status=413, error_type="invalid_request", description="The body is over the limit, as sent or decoded."),
    Fault(code="method_not_allowed", status=405, error_type="invalid_request", description="The endpoint does not take this method; the header `allow` names those that it takes."),
    Fault(code="websocket_unsupported", status=426, error_type="invalid_request", description="The client asks for a WebSocket, which no endpoint speaks. In Codex, set `supports_websockets = false` for the provider."),
    Fault(code="origin_refused", status=403, error_type="invalid_request", description="A browser sent the request for a page whose origin [cors] origins does not name."),
    Fault(code="unsupported_encoding", status=415, error_type="invalid_request", description="The body's content encoding is none of gzip, deflate, zstd."),
    Fault(code="unsupported_media_type", status=415, error_type="invalid_request", description="The endpoint does not take a body of this media type."),
    Fault(code="loop_detected", status=508, error_type="loop_detected", retry=True, blame=Blame.GATEWAY, description="The request has passed this gateway before, as its Via header shows: a backend's url leads back to the gateway. Correct that url."),
    Fault(code="client_gone", status=499, error_type="client_disconnect", stream_end="client_disconnect", description="The client disconnected before the end."),
)
_ACCESS = _rows(
    Fault(code="invalid_api_key", status=401, error_type="unauthorized", description="The request has no API key, or an unknown one."),
    Fault(code="key_expired", status=401, error_type="unauthorized", description="The API key has expired."),
    Fault(code="key_blocked", status=401, error_type="unauthorized", description="The operators have blocked the API key."),
    Fault(code="ambiguous_credentials", status=401, error_type="unauthorized", description="The request carries two different API keys."),
    Fault(code="endpoint_not_allowed", status=403, error_type="forbidden", description="The API key may not use this endpoint."),
    Fault(code="model_not_allowed", status=403, error_type="forbidden", description="The API key may not use this model."),
    Fault(code="rate_limit_exceeded", status=429, error_type="rate_limited", description="A limit of [[limits]] is used up; `retry-after` says when to try again."),
    Fault(code="insufficient_quota", status=429, error_type="budget_exceeded", description="A budget of [[budgets]] is spent, or what is left of it is less than the request can cost; `x-nexus-budget-resets` says when it starts anew."),
    Fault(code="budget_in_flight", status=429, error_type="budget_exceeded", description="What is left of a budget is held for requests in progress; `retry-after` says when to come again."),
    Fault(code="model_unpriced", status=403, error_type="forbidden", description="A budget holds for the request, and the model has no price."),
    Fault(code="max_tokens_required", status=400, error_type="invalid_request", description="A budget or a limit with `reserve_output = \"full\"` holds for the request, which does not state how long its response may be, and the length of the model's context is not known."),
    Fault(code="limits_unavailable", status=503, error_type="other", blame=Blame.GATEWAY, description="The state of limits and budgets could not be read in time, and a hard budget or a limit on requests in progress applies to the request."),
)
_ROUTING = _rows(
    Fault(code="model_not_found", status=404, error_type="model_not_found", description="No backend has the model."),
    Fault(code="fallback_exhausted", status=404, error_type="fallback_exhausted", description="Neither the model nor any of its fallbacks can be served."),
    Fault(code="not_translatable", status=400, error_type="invalid_request", retry=True, description="The request has a field that cannot be translated for a backend that speaks another API; the message names it."),
    Fault(code="response_not_stored", status=400, error_type="invalid_request", retry=True, description="The request names or asks for something stored, which a backend that gets it translated cannot have."),
    Fault(code="dialect_not_spoken", status=404, error_type="model_not_found", description="No backend that has the model speaks the API of the request, and none may get it translated."),
    Fault(code="endpoint_not_configured", status=404, error_type="invalid_request", description="The endpoint has no backend: [endpoints] names none for it."),
    Fault(code="capability_mismatch", status=400, error_type="capability_mismatch", description="No backend's model has the capabilities that the request needs."),
    Fault(code="no_backend", status=503, error_type="no_backend", blame=Blame.GATEWAY, description="The fleet is empty."),
    Fault(code="no_healthy_backend", status=503, error_type="no_healthy_backend", blame=Blame.GATEWAY, description="Every backend that has the model is down."),
    Fault(code="response_unavailable", status=503, error_type="no_healthy_backend", blame=Blame.GATEWAY, description="The backend that stores the response or the conversation that the request names is gone or down. No other backend has it."),
    Fault(code="routing_rejected", status=503, error_type="routing_rejected", blame=Blame.GATEWAY, description="The policies allow none of the healthy backends."),
    Fault(code="queue_full", status=503, error_type="queued", blame=Blame.GATEWAY, description="Every backend that has the model is at its limit, and the queue is full."),
    Fault(code="queue_timeout", status=503, error_type="queued", blame=Blame.GATEWAY, description="The request waited too long for capacity at a backend."),
    Fault(code="at_capacity", status=503, error_type="rate_limited", blame=Blame.GATEWAY, description="The gateway, or every backend that has the model, accepts no more requests for now."),
)
_BEFORE_THE_RESPONSE = _rows(
    Fault(code="connect_failed", status=502, error_type="backend_error", retry=True, retry_same=True, blame=Blame.BACKEND, description="The backend cannot be reached: the connection was refused, or there is no route."),
    Fault(code="dns_failed", status=502, error_type="backend_error", retry=True, blame=Blame.BACKEND, description="The backend's name cannot be resolved."),
    Fault(code="connect_timeout", status=504, error_type="timeout", retry=True, blame=Blame.BACKEND, description="The backend did not accept the connection in time."),
    Fault(code="tls_failed", status=502, error_type="backend_error", retry=True, blame=Blame.BACKEND, description="The TLS handshake failed, or the backend's certificate is not valid."),
    Fault(code="connection_lost", status=502, error_type="backend_error", retry=True, retry_same=True, blame=Blame.BACKEND, description="The backend closed the connection before its response was complete."),
    Fault(code="first_byte_timeout", status=504, error_type="timeout", retry=True, blame=Blame.BACKEND, description="The backend did not start its response in time."),
    Fault(code="idle_timeout", status=504, error_type="idle_timeout", retry=True, blame=Blame.BACKEND, description="The backend fell silent within its response."),
    Fault(code="deadline", status=504, error_type="deadline_exceeded", blame=Blame.BACKEND, description="The whole request took longer than the limit."),
    Fault(code="out_of_time", status=504, error_type="deadline_exceeded", blame=Blame.GATEWAY, description="The request's time ended before this backend had its full timeout, because the request had waited or been at other backends."),
    Fault(code="malformed_answer", status=502, error_type="backend_error", retry=True, retry_same=True, blame=Blame.BACKEND, description="The backend's response is not valid HTTP, or its body cannot be valid for a success: an HTML page, nothing, truncated JSON."),
    Fault(code="answer_too_large", status=502, error_type="backend_error", description="The backend's response is over [server] max_answer_bytes."),
    Fault(code="backend_key_unusable", status=502, error_type="upstream_auth", retry=True, blame=Blame.GATEWAY, description="The gateway's own key for the backend has a character that no header can carry; the request was not sent."),
    Fault(code="backend_redirects", status=502, error_type="backend_error", retry=True, blame=Blame.GATEWAY, description="The backend responded 3xx, so its url in the configuration is wrong; the message names the target."),
    Fault(code="backend_5xx", status=502, error_type="backend_error", retry=True, retry_same=True, blame=Blame.BACKEND, description="The backend responded with a 5xx; its own words are in the message."),
    Fault(code="error_event", status=502, error_type="backend_error", retry=True, retry_same=True, blame=Blame.BACKEND, description="The backend reported an error in a 200 response, or in its stream before any content. If its code names a 4xx, it is treated as that response."),
    Fault(code="backend_busy", status=None, error_type="rate_limited", retry=True, retry_same=True, blame=Blame.BUSY, description="The backend is loading or overloaded, or its queue is full: 503, 529, or a 500 that says so. The client gets that response if no other backend can serve."),
    Fault(code="backend_rate_limited", status=None, error_type="rate_limited", retry=True, retry_same=True, blame=Blame.BUSY, per_model=True, description="The backend responded 408 or 429. The client gets that response if no other backend can serve."),
    Fault(code="backend_limits_client", status=None, error_type="rate_limited", retry=True, description="The backend responded 429 to the client's own key. The client gets that response if no other backend can serve."),
    Fault(code="backend_refused_key", status=None, error_type="upstream_auth", retry=True, blame=Blame.GATEWAY, description="The backend responded 401, 402, or 403 to the gateway's key, or a 400 that means that. The client gets that response if no other backend can serve."),
    Fault(code="backend_refused_client", status=None, error_type="upstream_auth", description="The backend responded 401, 402, or 403 to the client's own key, or a 400 that means that. The client gets that response."),
    Fault(code="backend_lacks_model", status=None, error_type="model_not_found", retry=True, blame=Blame.GATEWAY, description="The backend does not have the model that it listed: 404, or a 400 that says so. It is probed at once. The client gets that response if no other backend can serve."),
    Fault(code="context_exceeded", status=None, error_type="invalid_request", description="The backend reported that the request exceeds the model's context. The client gets that response, as 400 if it was a 5xx."),
    Fault(code="backend_4xx", status=None, error_type="invalid_request", description="The backend refused the request as wrong. The client gets that response, as 400 if it was a 5xx."),
)
_WITHIN_A_STREAM = _rows(
    Fault(code="stream_reset", status=502, error_type="stream_interrupted", blame=Blame.BACKEND, stream_end="upstream_reset", description="The connection broke within the stream."),
    Fault(code="stream_truncated", status=502, error_type="stream_interrupted", blame=Blame.BACKEND, stream_end="upstream_truncated", description="The stream ended without [DONE] and without a finish reason."),
    Fault(code="stream_error", status=502, error_type="stream_interrupted", blame=Blame.BACKEND, stream_end="in_band_error", description="The backend reported an error within the stream."),
    Fault(code="stream_refused", status=502, error_type="invalid_request", stream_end="in_band_error", description="The backend refused the request as wrong after its pings had reached the client. The error is in the stream."),
    Fault(code="stream_error_busy", status=502, error_type="rate_limited", blame=Blame.BUSY, per_model=True, stream_end="in_band_error", description="The backend reported within the stream that it is busy."),
    Fault(code="stream_error_limits_client", status=502, error_type="rate_limited", stream_end="in_band_error", description="The backend reported within the stream that the client's own key is at its limit."),
    Fault(code="stream_idle", status=504, error_type="idle_timeout", blame=Blame.BACKEND, stream_end="idle_timeout", description="The stream fell silent for longer than the limit."),
    Fault(code="stream_deadline", status=504, error_type="deadline_exceeded", blame=Blame.BACKEND, stream_end="deadline", description="The stream took longer than the limit for whole streams."),
    Fault(code="stream_key_blocked", status=502, error_type="stream_interrupted", stream_end="key_blocked", description="The operators have blocked the API key, and ended its streams with `nexus keys block --now`."),
    Fault(code="shutdown", status=502, error_type="stream_interrupted", blame=Blame.GATEWAY, stream_end="shutdown", description="The gateway stopped, and the grace period ended."),
)
_OURS = _rows(
    Fault(code="stopping", status=503, error_type="shutdown", blame=Blame.GATEWAY, description="The gateway stopped before the request had a response."),
    Fault(code="internal", status=500, error_type="other", blame=Blame.GATEWAY, description="A defect in the gateway; its log has the trace."),
)
# fmt: on

FAULTS: dict[str, Fault] = (
    _CLIENT | _ACCESS | _ROUTING | _BEFORE_THE_RESPONSE | _WITHIN_A_STREAM | _OURS
)

STREAM_ENDS: tuple[str, ...] = (
    "complete", *dict.fromkeys(fault.stream_end for fault in FAULTS.values() if fault.stream_end)
)  # fmt: skip
"""How streams end."""

INTERNAL_MESSAGE = "The gateway failed; see its log."
"""What a client reads of the fault `internal`."""

ERROR_TYPES: frozenset[str] = frozenset(fault.error_type for fault in FAULTS.values())

_PASSED_ON = (200, 201, 202, 400, 401, 402, 403, 404, 408, 409, 413, 415, 422, 429, 503, 529)
_STATUSES = frozenset(fault.status for fault in FAULTS.values()) | frozenset(_PASSED_ON)


_STATUS_LABELS = {status: str(status) for status in _STATUSES if status is not None}


def status_label(status: int) -> str:
    """A status as a label value: a status of the table, else its class, which bounds the series."""
    return _STATUS_LABELS.get(status) or f"{status // 100}xx"


def status_labels() -> frozenset[str]:
    """Every value that the status label can have."""
    return frozenset(map(str, _STATUSES - {None})) | {f"{group}xx" for group in range(1, 10)}


@dataclass(frozen=True, slots=True)
class PassedOn:
    """A backend's error response, which the client gets unchanged."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class RequestFailed(Exception):
    """A request, or one attempt, failed with a fault of the table.

    Attributes:
        passed_on: The backend's response, for a fault without a status of its own.
        retry_after_s: The backend's `Retry-After`.
        kind: The type of the client's error, if it does not follow from the status.
    """

    def __init__(
        self,
        fault: str | Fault,
        message: str = "",
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        context: Mapping[str, Any] | None = None,
        passed_on: PassedOn | None = None,
        retry_after_s: float | None = None,
        kind: str | None = None,
    ) -> None:
        self.fault = FAULTS[fault] if isinstance(fault, str) else fault
        self.message = message or self.fault.description
        self.param = param
        self.headers = dict(headers or {})
        self.context = context
        self.passed_on = passed_on
        self.retry_after_s = retry_after_s
        self.kind = kind
        super().__init__(self.message)
