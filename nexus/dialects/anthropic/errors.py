"""Errors in Anthropic's form: written for clients, and read from backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from nexus.dialects.base import ReportedError
from nexus.dialects.lenient_json import UNREADABLE, lenient

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Status → the type of an error that has it."""
_STATUSES = {kind: status for status, kind in _TYPES.items()} | {"api_error": 500}
_TOO_LONG = "prompt is too long"
"""Words by which clients know that the context is exceeded."""
_DETAILS = {("not_translatable", "thread"): {"error_code": "thread_unsupported_request"}}
"""Code and field of a refusal → its details, for clients that then do without the field."""
_ERROR_WITHIN = 256
"""Only this prefix of a response is searched for `"error"`."""
_LONGEST_MESSAGE = 500


class _Error(msgspec.Struct):
    type: Any = None
    message: Any = None


class _Response(msgspec.Struct):
    type: Any = None
    error: _Error | None = None


_decode = lenient(msgspec.json.Decoder(_Response).decode)


def error_body(
    message: str,
    *,
    status: int,
    code: str | None,
    param: str | None = None,
    context: Mapping[str, Any] | None = None,
    request_id: str | None = None,
    kind: str | None = None,  # noqa: ARG001 - it is a type of OpenAI's
) -> bytes:
    """An error in Anthropic's form. `code` and `param` stand beside its type and message."""
    type_ = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    if code == "context_exceeded" and _TOO_LONG not in message.lower():
        message = f"{_TOO_LONG}: {message}"
    error: dict[str, Any] = {"type": type_, "message": message, "code": code}
    if param is not None:
        error["param"] = param
    if details := _DETAILS.get((code or "", param or "")):
        error["details"] = details
    body: dict[str, Any] = {"type": "error", "error": error}
    if request_id is not None:
        body["request_id"] = request_id
    if context is not None:
        body["context"] = context
    return msgspec.json.encode(body)


def error_in_response(response: bytes) -> ReportedError | None:
    """The error in a response of 200 that is no message."""
    return error_in(response) if b'"error"' in response[:_ERROR_WITHIN] else None


def error_in(data: bytes) -> ReportedError | None:
    """The error that a body or an event reports; None if it is not in Anthropic's form."""
    try:
        fields = _decode(data)
    except UNREADABLE:
        return None
    if fields.error is None or fields.type not in ("error", None):
        return None
    message = str(fields.error.message or "no message")[:_LONGEST_MESSAGE]
    return ReportedError(message, _STATUSES.get(str(fields.error.type), 500), data)
