"""Requests and responses of which the gateway reads nothing but a model. Its own errors have
OpenAI's form. `base.Dialect` is its contract."""

from __future__ import annotations

from collections.abc import Callable

from nexus.dialects.binary_stream import BinaryStream
from nexus.dialects.estimate import estimate_tokens
from nexus.dialects.json_body import replace_model
from nexus.dialects.openai import (
    ERROR_SCHEMA,
    NAME,
    PASSES_ERRORS,
    PING_S,
    REQUEST_ID_HEADER,
    TITLE,
)
from nexus.dialects.openai.errors import error_body, error_in_response
from nexus.dialects.openai.events import KEEPALIVE, error_event, response_events
from nexus.dialects.openai.limits import LIMIT_KINDS, limit_headers
from nexus.dialects.openai.request import parse_request
from nexus.dialects.openai.usage import ask_for_usage, asks_for_usage, usage_in_response

__all__ = [
    "ERROR_SCHEMA",
    "KEEPALIVE",
    "LIMIT_KINDS",
    "NAME",
    "PASSES_ERRORS",
    "PING_S",
    "REQUEST_ID_HEADER",
    "TITLE",
    "ask_for_usage",
    "asks_for_usage",
    "error_body",
    "error_event",
    "error_in_response",
    "estimate_tokens",
    "limit_headers",
    "open_stream",
    "parse_request",
    "replace_model",
    "response_events",
    "usage_in_response",
]


class PlainStream(BinaryStream):
    """As `BinaryStream`, but nothing is a content, too."""

    def end(self) -> bytes:
        self.content = True
        return b""


def open_stream(
    *,
    clock: Callable[[], float],
    hide_usage: bool,  # noqa: ARG001 - the request is not changed
    own_key: str | None,  # noqa: ARG001 - no error is read within it
) -> PlainStream:
    """A reader of bytes that are relayed as they come."""
    return PlainStream(clock=clock)
