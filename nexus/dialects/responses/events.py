"""Events that the gateway itself writes into a client's stream."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects.openai.errors import error_body
from nexus.dialects.responses.errors import ErrorFields

_LONGEST_MESSAGE = 1000
"""Bytes of a failed response that become the message of an error."""


class _Failed(msgspec.Struct):
    error: ErrorFields


_decode_failed = msgspec.json.Decoder(_Failed).decode


def error_event(
    message: str,
    *,
    status: int,
    code: str | None,
    number: int = 0,
    request_id: str | None = None,  # noqa: ARG001 - other dialects have it
) -> bytes:
    """An error as the last event of a stream.

    Its fields are those of the API's `error` event. OpenAI's clients raise for the object `error`.
    """
    error = msgspec.json.decode(error_body(message, status=status, code=code))["error"]
    fields: dict[str, Any] = {
        "type": "error",
        "code": error["code"],
        "message": message,
        "param": None,
        "sequence_number": number,
        "error": error,
    }
    return b"event: error\ndata: " + msgspec.json.encode(fields) + b"\n\n"


def response_events(response: bytes, status: int) -> bytes:
    """A whole response as the only event of a stream."""
    if status < 300:
        try:
            whole = msgspec.json.format(response, indent=-1)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return error_event("The backend answered without a stream.", status=502, code=None)
        data = b'{"type":"response.completed","sequence_number":0,"response":%b}' % whole
        return b"event: response.completed\ndata: " + data + b"\n\n"
    try:
        error = _decode_failed(response).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = response[:_LONGEST_MESSAGE].decode(errors="replace")
        return error_event(message, status=status, code=None)
    code = str(error.code) if error.code else None
    return error_event(str(error.message), status=status, code=code)
