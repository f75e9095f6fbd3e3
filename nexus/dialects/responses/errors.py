"""Errors of the Responses API, read from backends. Whole ones have the form of OpenAI's others."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects.base import ReportedError
from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.openai import errors as openai_errors

_LONGEST_MESSAGE = 500
_STATUSES = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "server_is_overloaded": 503,
    "slow_down": 503,
    "invalid_prompt": 400,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "bio_policy": 400,
    "cyber_policy": 400,
}
"""Codes and types of errors → the status of a response that would say the same. Others are 500."""


class _Kind(msgspec.Struct):
    object: Any = None


class ErrorFields(msgspec.Struct):
    """An error within a response or an event."""

    type: Any = None
    code: Any = None
    message: Any = None


_decode = lenient(msgspec.json.Decoder(_Kind).decode)


def error_in_response(response: bytes) -> ReportedError | None:
    """The error in a body of 200 that is no response.

    A response that failed is one: the client reads its `status`.
    """
    error = openai_errors.error_in_response(response)
    if error is None:
        return None
    try:
        return None if _decode(response).object == "response" else error
    except UNREADABLE:
        return error


def reported_error(fields: ErrorFields | None) -> ReportedError:
    """The error that an event reports, as the body of an error response."""
    fields = fields or ErrorFields()
    message = str(fields.message or "no message")[:_LONGEST_MESSAGE]
    code = str(fields.code) if fields.code else None
    status = _STATUSES.get(code or "") or _STATUSES.get(str(fields.type), 500)
    return ReportedError(
        message, status, openai_errors.error_body(message, status=status, code=code)
    )
