"""Errors in OpenAI's form: written for clients, and read from backends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from nexus.dialects.base import ReportedError
from nexus.dialects.lenient_json import UNREADABLE, lenient

_ERROR_WITHIN = 256
"""Only this prefix of a response is searched for `"error"`."""
_LONGEST_MESSAGE = 500
_IS_STATUS = re.compile("[45][0-9][0-9]").fullmatch
_STATUSES = {
    "invalid_request_error": 400,
    "rate_limit_error": 429,
    "overloaded_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
}
"""Types and codes of errors, as OpenAI and Anthropic name them, with the status that goes with
them."""
_CODES = {"context_exceeded": "context_length_exceeded"}
"""Faults → the codes by which OpenAI's clients know them."""


class ErrorFields(msgspec.Struct):
    """The fields in which servers report an error: in `error`, or at the top level beside
    `"object": "error"`."""

    error: Any = None
    object: Any = None
    type: Any = None
    message: Any = None
    code: Any = None


class _Response(ErrorFields):
    choices: list[Any] | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = lenient(msgspec.json.Decoder(_Response).decode)


def error_body(
    message: str,
    *,
    status: int,
    code: str | None,
    param: str | None = None,
    context: Mapping[str, Any] | None = None,
    request_id: str | None = None,  # noqa: ARG001 - other dialects have it
    kind: str | None = None,
) -> bytes:
    """An error in OpenAI's form, which has no place for `request_id`.

    A 503 carries `context` beside it: what could serve, and when.
    """
    if kind is None:
        kind = "invalid_request_error" if status < 500 else "server_error"
        if status == 429:
            kind = "rate_limit_error"
    code = _CODES.get(code or "", code)
    body: dict[str, Any] = {
        "error": {"message": message, "type": kind, "param": param, "code": code}
    }
    if context is not None:
        body["context"] = context
    return msgspec.json.encode(body)


def error_in_response(response: bytes) -> ReportedError | None:
    """The error in a response of 200 that has nothing else.

    OpenRouter, for one, reports a failure so if it has sent the head already.
    """
    if b'"error"' not in response[:_ERROR_WITHIN]:
        return None
    try:
        fields = _decode(response)
    except UNREADABLE:
        return None
    if not fields.error or fields.choices or fields.data is not msgspec.UNSET:
        return None
    return reported_error(fields, response)


def reported_error(fields: ErrorFields, body: bytes) -> ReportedError:
    """The error that these fields of `body` report."""
    error = fields.error or fields.message
    message = error.get("message") if isinstance(error, dict) else error
    status = _status_of(error if isinstance(error, dict) else {"code": fields.code})
    return ReportedError(str(message or "no message")[:_LONGEST_MESSAGE], status, body)


def _status_of(error: dict[str, Any]) -> int:
    """The status that an error stands for: its code if that is one, else what its code or type
    is known for."""
    code = str(error.get("code"))
    if _IS_STATUS(code):
        return int(code)
    return _STATUSES.get(code) or _STATUSES.get(str(error.get("type")), 500)
