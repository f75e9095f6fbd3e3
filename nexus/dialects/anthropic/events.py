"""Events that the gateway itself writes into a client's stream."""

from __future__ import annotations

from nexus.dialects.anthropic.errors import error_body, error_in

KEEPALIVE = b'event: ping\ndata: {"type": "ping"}\n\n'
_LONGEST_MESSAGE = 1000
"""Bytes of a failed response that become the message of an error."""


def error_event(
    message: str,
    *,
    status: int,
    code: str | None,
    number: int = 0,  # noqa: ARG001 - other dialects number their events
    request_id: str | None = None,
) -> bytes:
    """An error as the last event of a stream."""
    return _event(error_body(message, status=status, code=code, request_id=request_id))


def response_events(response: bytes, status: int) -> bytes:
    """A failed response as the last event of a stream.

    A whole message cannot be one: its client gets an error.
    """
    if status < 300:
        return error_event("The backend responded without a stream.", status=502, code=None)
    if error_in(response) is None:
        message = response[:_LONGEST_MESSAGE].decode(errors="replace")
        return error_event(message, status=status, code=None)
    return _event(b" ".join(response.splitlines()))


def _event(error: bytes) -> bytes:
    return b"event: error\ndata: " + error + b"\n\n"
