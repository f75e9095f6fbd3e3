"""The table of faults: the client's status, whether to retry, and whether the backend is blamed.

Router, proxy, metrics, logs and documentation read the same rows. `error_type` is the label value
of `nexus_errors_total`; the values of `ERROR_TYPES` are all that ever appear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Blame(Enum):
    """Whose fault it was, for the record that is kept of a backend."""

    CLIENT = "client"
    BACKEND = "backend"
    BUSY = "busy"
    GATEWAY = "gateway"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One row. `status` is what the client gets and what is counted; None passes the backend's own
    answer on.

    `retry`: whether another backend is tried; `retry_same`: whether the same one may be, after a
    pause, where no other is left. `stream_end`: how a stream ended that came to this, in
    `nexus_stream_ends_total`. `per_model`: of a busy backend, whether only the model that was asked
    for is.
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
    Fault(code="body_too_slow", status=408, error_type="invalid_request", description="The body did not arrive in time, or not at the least rate."),
    Fault(code="body_too_large", status=413, error_type="invalid_request", description="The body is over the limit, as it came or decoded."),
    Fault(code="method_not_allowed", status=405, error_type="invalid_request", description="The endpoint takes POST only."),
    Fault(code="origin_refused", status=403, error_type="invalid_request", description="A browser sent the request for a page whose origin [cors] origins does not name."),
    Fault(code="unsupported_encoding", status=415, error_type="invalid_request", description="The body's content encoding is none of gzip, deflate, zstd."),
    Fault(code="unsupported_media_type", status=415, error_type="invalid_request", description="The body is not application/json."),
    Fault(code="loop_detected", status=508, error_type="loop_detected", retry=True, blame=Blame.GATEWAY, description="The request has passed this gateway before, as its Via header shows: a backend's url leads back to the gateway. Correct that url."),
    Fault(code="client_gone", status=499, error_type="client_disconnect", stream_end="client_disconnect", description="The client went away before the end."),
)
_ACCESS = _rows(
    Fault(code="invalid_api_key", status=401, error_type="unauthorized", description="The request has no API key, or one that is not known."),
    Fault(code="key_expired", status=401, error_type="unauthorized", description="The API key has expired."),
    Fault(code="key_blocked", status=401, error_type="unauthorized", description="The operators have blocked the API key."),
    Fault(code="ambiguous_credentials", status=401, error_type="unauthorized", description="The request carries two different API keys."),
    Fault(code="endpoint_not_allowed", status=403, error_type="forbidden", description="The API key may not use this endpoint."),
    Fault(code="model_not_allowed", status=403, error_type="forbidden", description="The API key may not use this model."),
    Fault(code="rate_limit_exceeded", status=429, error_type="rate_limited", description="A limit of [[limits]] is used up; `retry-after` says when to come again."),
    Fault(code="limits_unavailable", status=503, error_type="other", blame=Blame.GATEWAY, description="The levels of the limits could not be read in time, and a limit on requests in progress holds for the request."),
)
_ROUTING = _rows(
    Fault(code="model_not_found", status=404, error_type="model_not_found", description="No backend has the model."),
    Fault(code="fallback_exhausted", status=404, error_type="fallback_exhausted", description="Neither the model nor any of its fallbacks can be served."),
    Fault(code="dialect_not_spoken", status=404, error_type="model_not_found", description="No backend that has the model speaks the API that the request is written in."),
    Fault(code="capability_mismatch", status=400, error_type="capability_mismatch", description="No backend's model can do what the request asks."),
    Fault(code="no_backend", status=503, error_type="no_backend", blame=Blame.GATEWAY, description="The fleet is empty."),
    Fault(code="no_healthy_backend", status=503, error_type="no_healthy_backend", blame=Blame.GATEWAY, description="Every backend that has the model is down."),
    Fault(code="routing_rejected", status=503, error_type="routing_rejected", blame=Blame.GATEWAY, description="The policies allow none of the healthy backends."),
    Fault(code="queue_full", status=503, error_type="queued", blame=Blame.GATEWAY, description="Every backend that has the model is at its limit, and as many requests wait as may."),
    Fault(code="queue_timeout", status=503, error_type="queued", blame=Blame.GATEWAY, description="The request waited for room at a backend for as long as it may."),
    Fault(code="at_capacity", status=503, error_type="rate_limited", blame=Blame.GATEWAY, description="The gateway, or every backend that has the model, takes no more for now."),
)
_BEFORE_THE_ANSWER = _rows(
    Fault(code="connect_failed", status=502, error_type="backend_error", retry=True, retry_same=True, blame=Blame.BACKEND, description="The backend cannot be reached: the connection is refused, or there is no route."),
    Fault(code="dns_failed", status=502, error_type="backend_error", retry=True, blame=Blame.BACKEND, description="The backend's name is not known."),
    Fault(code="connect_timeout", status=504, error_type="timeout", retry=True, blame=Blame.BACKEND, description="The backend did not take the connection in time."),
    Fault(code="tls_failed", status=502, error_type="backend_error", retry=True, blame=Blame.BACKEND, description="The backend's certificate or its TLS is not right."),
    Fault(code="connection_lost", status=502, error_type="backend_error", retry=True, retry_same=True, blame=Blame.BACKEND, description="The backend closed the connection before its answer was complete."),
    Fault(code="first_byte_timeout", status=504, error_type="timeout", retry=True, blame=Blame.BACKEND, description="The backend did not begin to answer in time."),
    Fault(code="idle_timeout", status=504, error_type="idle_timeout", retry=True, blame=Blame.BACKEND, description="The backend fell silent within its answer."),
    Fault(code="deadline", status=504, error_type="deadline_exceeded", blame=Blame.BACKEND, description="The whole request took longer than the limit."),
    Fault(code="out_of_time", status=504, error_type="deadline_exceeded", blame=Blame.GATEWAY, description="The time for the whole request was over before this backend had its own: it was spent waiting for room or at other backends."),
    Fault(code="malformed_answer", status=502, error_type="backend_error", retry=True, retry_same=True, blame=Blame.BACKEND, description="The backend's answer is not HTTP that can be trusted, or what came with the status of a success cannot be an answer: an HTML page, no body, JSON that is cut short."),
    Fault(code="answer_too_large", status=502, error_type="backend_error", description="The backend's answer is over [server] max_answer_bytes."),
    Fault(code="backend_key_unusable", status=502, error_type="upstream_auth", retry=True, blame=Blame.GATEWAY, description="The gateway's own key for the backend has a character that no header can carry; the backend was not asked."),
    Fault(code="backend_redirects", status=502, error_type="backend_error", retry=True, blame=Blame.GATEWAY, description="The backend answered 3xx, so that its url in the configuration is not the right one; the message says where it points to."),
    Fault(code="backend_5xx", status=502, error_type="backend_error", retry=True, retry_same=True, blame=Blame.BACKEND, description="The backend failed and said so with a 5xx; its own words are in the message."),
    Fault(code="error_event", status=502, error_type="backend_error", retry=True, retry_same=True, blame=Blame.BACKEND, description="The backend reported an error in an answer of 200, or in its stream before any content. One that says by its code that it stands for a 4xx is taken as that answer."),
    Fault(code="backend_busy", status=None, error_type="rate_limited", retry=True, retry_same=True, blame=Blame.BUSY, description="The backend is loading, overloaded or has a full queue: 503, 529, or 500 in such words; the client gets that answer where no other backend can serve."),
    Fault(code="backend_rate_limited", status=None, error_type="rate_limited", retry=True, retry_same=True, blame=Blame.BUSY, per_model=True, description="The backend answered 408 or 429; the client gets that answer where no other backend can serve."),
    Fault(code="backend_limits_client", status=None, error_type="rate_limited", retry=True, description="The backend answered 429 to the client's own Authorization; the client gets that answer where no other backend can serve."),
    Fault(code="backend_refused_key", status=None, error_type="upstream_auth", retry=True, blame=Blame.GATEWAY, description="The backend answered 401, 402 or 403 to the gateway's key; the client gets that answer where no other backend can serve."),
    Fault(code="backend_refused_client", status=None, error_type="upstream_auth", description="The backend answered 401, 402 or 403 to the client's own Authorization; the client gets that answer."),
    Fault(code="backend_lacks_model", status=None, error_type="model_not_found", retry=True, blame=Blame.GATEWAY, description="The backend does not have what it was chosen for: 404, or 400 in such words. It is probed at once; the client gets that answer where no other backend can serve."),
    Fault(code="context_exceeded", status=None, error_type="invalid_request", description="The request is longer than the model's context, in the backend's words; the client gets that answer, as 400 if the backend gave a 5xx."),
    Fault(code="backend_4xx", status=None, error_type="invalid_request", description="The backend found fault with the request; the client gets that answer, as 400 if the backend gave a 5xx."),
)
_WITHIN_A_STREAM = _rows(
    Fault(code="stream_reset", status=502, error_type="stream_interrupted", blame=Blame.BACKEND, stream_end="upstream_reset", description="The connection broke within the stream."),
    Fault(code="stream_truncated", status=502, error_type="stream_interrupted", blame=Blame.BACKEND, stream_end="upstream_truncated", description="The stream ended without its end: neither [DONE] nor a reason for finishing."),
    Fault(code="stream_error", status=502, error_type="stream_interrupted", blame=Blame.BACKEND, stream_end="in_band_error", description="The backend reported an error within the stream."),
    Fault(code="stream_refused", status=502, error_type="invalid_request", stream_end="in_band_error", description="The backend found fault with the request when its pings had reached the client already; the error is in the stream."),
    Fault(code="stream_error_busy", status=502, error_type="rate_limited", blame=Blame.BUSY, per_model=True, stream_end="in_band_error", description="The backend reported within the stream that it takes no more for now."),
    Fault(code="stream_error_limits_client", status=502, error_type="rate_limited", stream_end="in_band_error", description="The backend reported within the stream that the client's own key is at its limit."),
    Fault(code="stream_idle", status=504, error_type="idle_timeout", blame=Blame.BACKEND, stream_end="idle_timeout", description="The stream fell silent for longer than the limit."),
    Fault(code="stream_deadline", status=504, error_type="deadline_exceeded", blame=Blame.BACKEND, stream_end="deadline", description="The stream took longer than the limit for a whole one."),
    Fault(code="shutdown", status=502, error_type="stream_interrupted", blame=Blame.GATEWAY, stream_end="shutdown", description="The gateway was stopped and the grace was over."),
)
_OURS = _rows(
    Fault(code="stopping", status=503, error_type="shutdown", blame=Blame.GATEWAY, description="The gateway was stopped before the request had an answer."),
    Fault(code="internal", status=500, error_type="other", blame=Blame.GATEWAY, description="A defect in the gateway; its log has the trace."),
)
# fmt: on

FAULTS: dict[str, Fault] = (
    _CLIENT | _ACCESS | _ROUTING | _BEFORE_THE_ANSWER | _WITHIN_A_STREAM | _OURS
)

STREAM_ENDS: tuple[str, ...] = (
    "complete", *dict.fromkeys(fault.stream_end for fault in FAULTS.values() if fault.stream_end)
)  # fmt: skip
"""How streams end."""

ERROR_TYPES: frozenset[str] = frozenset(fault.error_type for fault in FAULTS.values())

_PASSED_ON = (200, 201, 202, 400, 401, 402, 403, 404, 408, 409, 413, 415, 422, 429, 503, 529)
_STATUSES = frozenset(fault.status for fault in FAULTS.values()) | frozenset(_PASSED_ON)


_STATUS_LABELS = {status: str(status) for status in _STATUSES if status is not None}


def status_label(status: int) -> str:
    """A status as a label value: itself where the table knows it, else its class, so that series
    stay bounded."""
    return _STATUS_LABELS.get(status) or f"{status // 100}xx"


def status_labels() -> frozenset[str]:
    """Every value that the status label can have."""
    return frozenset(map(str, _STATUSES - {None})) | {f"{group}xx" for group in range(1, 10)}


@dataclass(frozen=True, slots=True)
class PassedOn:
    """A backend's own error answer, which the client gets as it was."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class RequestFailed(Exception):
    """A request, or one attempt at it, came to a fault of the table.

    `passed_on` is the backend's answer where the fault has no status of its own; `retry_after_s`
    when it asked to come back; `kind` the type of the error that the client gets, if it does not
    follow from the status.
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
