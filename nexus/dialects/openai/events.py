"""Events that the gateway itself writes into a client's stream."""

from __future__ import annotations

import msgspec

from nexus.dialects.openai.errors import error_body

KEEPALIVE = b": waiting\n\n"
_LONGEST_MESSAGE = 1000
"""Bytes of a failed response that become the message of an error."""


def error_event(
    message: str,
    *,
    status: int,
    code: str | None,
    number: int = 0,  # noqa: ARG001 - other dialects number their events
    request_id: str | None = None,  # noqa: ARG001 - other dialects have it
) -> bytes:
    """An error as the last event of a stream."""
    return b"data: " + error_body(message, status=status, code=code) + b"\n\n"


def response_events(response: bytes, status: int) -> bytes:
    """A whole response as the events of a stream: its JSON, then `[DONE]` if it is no failure."""
    events = b"data: " + _event_data(response, status) + b"\n\n" if response else b""
    return events + b"data: [DONE]\n\n" if status < 300 else events


def _event_data(response: bytes, status: int) -> bytes:
    """JSON without line breaks; a failure that is not in OpenAI's form becomes an error that is."""
    try:
        data = msgspec.json.decode(response)
        if status < 300 or (isinstance(data, dict) and data.get("error")):
            return msgspec.json.format(response, indent=-1)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if status < 300:
            return b" ".join(response.splitlines())
    message = response[:_LONGEST_MESSAGE].decode(errors="replace")
    return error_body(message, status=status, code=None)
