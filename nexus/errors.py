"""The one table of faults: what each means for the client, for another try, and for the backend's record.

Router, proxy, metrics, logs and documentation read the same rows. `error_type` is the label value of
`nexus_errors_total`; the values of `ERROR_TYPES` are all that ever appear.
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
    """One row. `status` is what the client gets and what is counted; None passes the backend's own answer on.

    `retry`: whether another backend is tried; `again`: whether the same one may be, after a pause, where no other is
    left. `stream_end`: how a stream ended that came to this, in `nexus_stream_ends_total`. `per_model`: of a busy
    backend, whether only the model that was asked for is.
    """

    name: str
    status: int | None
    error_type: str
    retry: bool = False
    again: bool = False
    stream_end: str | None = None
    blame: Blame = Blame.CLIENT
    per_model: bool = False
    meaning: str

    @property
    def code(self) -> str:
        """OpenAI's `code` of the error."""
        return self.name


def _rows(*faults: Fault) -> dict[str, Fault]:
    return {fault.name: fault for fault in faults}


# fmt: off
_CLIENT = _rows(
    Fault(name="invalid_json", status=400, error_type="parse_error", meaning="The body is not JSON."),
    Fault(name="invalid_request", status=400, error_type="invalid_request", meaning="The body lacks a field or has a wrong one."),
    Fault(name="body_cut_short", status=400, error_type="invalid_request", meaning="The body ended before its Content-Length."),
    Fault(name="body_malformed", status=400, error_type="invalid_request", meaning="The body's transfer coding or its content encoding is broken."),
    Fault(name="body_too_slow", status=408, error_type="invalid_request", meaning="The body did not arrive in time, or not at the least rate."),
    Fault(name="body_too_large", status=413, error_type="invalid_request", meaning="The body is over the limit, as it came or decoded."),
    Fault(name="method_not_allowed", status=405, error_type="invalid_request", meaning="The endpoint takes POST only."),
    Fault(name="origin_refused", status=403, error_type="invalid_request", meaning="A browser sent the request for a page whose origin [cors] origins does not name."),
    Fault(name="unsupported_encoding", status=415, error_type="invalid_request", meaning="The body's content encoding is none of gzip, deflate, zstd."),
    Fault(name="unsupported_media_type", status=415, error_type="invalid_request", meaning="The body is not application/json."),
    Fault(name="loop_detected", status=508, error_type="loop_detected", retry=True, blame=Blame.GATEWAY, meaning="The request has passed this gateway before, as its Via header shows: a backend's url leads back to the gateway. Correct that url."),
    Fault(name="client_gone", status=499, error_type="client_disconnect", stream_end="client_disconnect", meaning="The client went away before the end."),
)
_ROUTING = _rows(
    Fault(name="model_not_found", status=404, error_type="model_not_found", meaning="No backend has the model."),
    Fault(name="fallback_exhausted", status=404, error_type="fallback_exhausted", meaning="Neither the model nor any of its fallbacks can be served."),
    Fault(name="capability_mismatch", status=400, error_type="capability_mismatch", meaning="No backend's model can do what the request asks."),
    Fault(name="no_backend", status=503, error_type="no_backend", blame=Blame.GATEWAY, meaning="The fleet is empty."),
    Fault(name="no_healthy_backend", status=503, error_type="no_healthy_backend", blame=Blame.GATEWAY, meaning="Every backend that has the model is down."),
    Fault(name="routing_rejected", status=503, error_type="routing_rejected", blame=Blame.GATEWAY, meaning="The policies allow none of the healthy backends."),
    Fault(name="queue_full", status=503, error_type="queued", blame=Blame.GATEWAY, meaning="Every backend that has the model is at its limit, and as many requests wait as may."),
    Fault(name="queue_timeout", status=503, error_type="queued", blame=Blame.GATEWAY, meaning="The request waited for room at a backend for as long as it may."),
    Fault(name="at_capacity", status=503, error_type="rate_limited", blame=Blame.GATEWAY, meaning="The gateway, or every backend that has the model, takes no more for now."),
)
_BEFORE_THE_ANSWER = _rows(
    Fault(name="connect_failed", status=502, error_type="backend_error", retry=True, again=True, blame=Blame.BACKEND, meaning="The backend cannot be reached: the connection is refused, or there is no route."),
    Fault(name="dns_failed", status=502, error_type="backend_error", retry=True, blame=Blame.BACKEND, meaning="The backend's name is not known."),
    Fault(name="connect_timeout", status=504, error_type="timeout", retry=True, blame=Blame.BACKEND, meaning="The backend did not take the connection in time."),
    Fault(name="tls_failed", status=502, error_type="backend_error", retry=True, blame=Blame.BACKEND, meaning="The backend's certificate or its TLS is not right."),
    Fault(name="connection_lost", status=502, error_type="backend_error", retry=True, again=True, blame=Blame.BACKEND, meaning="The backend closed the connection before its answer was complete."),
    Fault(name="first_byte_timeout", status=504, error_type="timeout", retry=True, blame=Blame.BACKEND, meaning="The backend did not begin to answer in time."),
    Fault(name="idle_timeout", status=504, error_type="idle_timeout", retry=True, blame=Blame.BACKEND, meaning="The backend fell silent within its answer."),
    Fault(name="deadline", status=504, error_type="deadline_exceeded", blame=Blame.BACKEND, meaning="The whole request took longer than the limit."),
    Fault(name="out_of_time", status=504, error_type="deadline_exceeded", blame=Blame.GATEWAY, meaning="The time for the whole request was over before this backend had its own: it was spent waiting for room or at other backends."),
    Fault(name="malformed_answer", status=502, error_type="backend_error", retry=True, again=True, blame=Blame.BACKEND, meaning="The backend's answer is not HTTP that can be trusted, or what came with the status of a success cannot be an answer: an HTML page, no body, JSON that is cut short."),
    Fault(name="answer_too_large", status=502, error_type="backend_error", meaning="The backend's answer is over [server] max_answer_bytes."),
    Fault(name="backend_key_unusable", status=502, error_type="upstream_auth", retry=True, blame=Blame.GATEWAY, meaning="The gateway's own key for the backend has a character that no header can carry; the backend was not asked."),
    Fault(name="backend_redirects", status=502, error_type="backend_error", retry=True, blame=Blame.GATEWAY, meaning="The backend answered 3xx, so that its url in the configuration is not the right one; the message says where it points to."),
    Fault(name="backend_5xx", status=502, error_type="backend_error", retry=True, again=True, blame=Blame.BACKEND, meaning="The backend failed and said so with a 5xx; its own words are in the message."),
    Fault(name="error_event", status=502, error_type="backend_error", retry=True, again=True, blame=Blame.BACKEND, meaning="The backend reported an error in an answer of 200, or in its stream before any content. One that says by its code that it stands for a 4xx is taken as that answer."),
    Fault(name="backend_busy", status=None, error_type="rate_limited", retry=True, again=True, blame=Blame.BUSY, meaning="The backend is loading, overloaded or has a full queue: 503, 529, or 500 in such words; the client gets that answer where no other backend can serve."),
    Fault(name="backend_rate_limited", status=None, error_type="rate_limited", retry=True, again=True, blame=Blame.BUSY, per_model=True, meaning="The backend answered 408 or 429; the client gets that answer where no other backend can serve."),
    Fault(name="backend_limits_client", status=None, error_type="rate_limited", retry=True, meaning="The backend answered 429 to the client's own Authorization; the client gets that answer where no other backend can serve."),
    Fault(name="backend_refused_key", status=None, error_type="upstream_auth", retry=True, blame=Blame.GATEWAY, meaning="The backend answered 401, 402 or 403 to the gateway's key; the client gets that answer where no other backend can serve."),
    Fault(name="backend_refused_client", status=None, error_type="upstream_auth", meaning="The backend answered 401, 402 or 403 to the client's own Authorization; the client gets that answer."),
    Fault(name="backend_lacks_model", status=None, error_type="model_not_found", retry=True, blame=Blame.GATEWAY, meaning="The backend does not have what it was chosen for: 404, or 400 in such words. It is probed at once; the client gets that answer where no other backend can serve."),
    Fault(name="context_exceeded", status=None, error_type="invalid_request", meaning="The request is longer than the model's context, in the backend's words; the client gets that answer, as 400 if the backend gave a 5xx."),
    Fault(name="backend_4xx", status=None, error_type="invalid_request", meaning="The backend found fault with the request; the client gets that answer, as 400 if the backend gave a 5xx."),
)
_WITHIN_A_STREAM = _rows(
    Fault(name="stream_reset", status=502, error_type="stream_interrupted", blame=Blame.BACKEND, stream_end="upstream_reset", meaning="The connection broke within the stream."),
    Fault(name="stream_truncated", status=502, error_type="stream_interrupted", blame=Blame.BACKEND, stream_end="upstream_truncated", meaning="The stream ended without its end: neither [DONE] nor a reason for finishing."),
    Fault(name="stream_error", status=502, error_type="stream_interrupted", blame=Blame.BACKEND, stream_end="in_band_error", meaning="The backend told of an error within the stream."),
    Fault(name="stream_refused", status=502, error_type="invalid_request", stream_end="in_band_error", meaning="The backend found fault with the request when its pings had reached the client already; the error is in the stream."),
    Fault(name="stream_error_busy", status=502, error_type="rate_limited", blame=Blame.BUSY, per_model=True, stream_end="in_band_error", meaning="The backend told within the stream that it takes no more for now."),
    Fault(name="stream_error_limits_client", status=502, error_type="rate_limited", stream_end="in_band_error", meaning="The backend told within the stream that the client's own key is at its limit."),
    Fault(name="stream_idle", status=504, error_type="idle_timeout", blame=Blame.BACKEND, stream_end="idle_timeout", meaning="The stream fell silent for longer than the limit."),
    Fault(name="stream_deadline", status=504, error_type="deadline_exceeded", blame=Blame.BACKEND, stream_end="deadline", meaning="The stream took longer than the limit for a whole one."),
    Fault(name="shutdown", status=502, error_type="stream_interrupted", blame=Blame.GATEWAY, stream_end="shutdown", meaning="The gateway was stopped and the grace was over."),
)
_OURS = _rows(
    Fault(name="stopping", status=503, error_type="shutdown", blame=Blame.GATEWAY, meaning="The gateway was stopped before the request had an answer."),
    Fault(name="internal", status=500, error_type="other", blame=Blame.GATEWAY, meaning="A defect in the gateway; its log has the trace."),
)
# fmt: on

FAULTS: dict[str, Fault] = _CLIENT | _ROUTING | _BEFORE_THE_ANSWER | _WITHIN_A_STREAM | _OURS

STREAM_ENDS: tuple[str, ...] = (
    "complete", *dict.fromkeys(fault.stream_end for fault in FAULTS.values() if fault.stream_end)
)  # fmt: skip
"""How streams end."""

ERROR_TYPES: frozenset[str] = frozenset(fault.error_type for fault in FAULTS.values())

_PASSED_ON = (200, 201, 202, 400, 401, 402, 403, 404, 408, 409, 413, 415, 422, 429, 503, 529)
_STATUSES = frozenset(fault.status for fault in FAULTS.values()) | frozenset(_PASSED_ON)


_STATUS_LABELS = {status: str(status) for status in _STATUSES if status is not None}


def status_label(status: int) -> str:
    """A status as a label value: itself where the table knows it, else its class, so that series stay bounded."""
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

    `passed_on` is the backend's answer where the fault has no status of its own; `retry_after_s` when it asked to come
    back.
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
    ) -> None:
        self.fault = FAULTS[fault] if isinstance(fault, str) else fault
        self.message = message or self.fault.meaning
        self.param = param
        self.headers = dict(headers or {})
        self.context = context
        self.passed_on = passed_on
        self.retry_after_s = retry_after_s
        super().__init__(self.message)
