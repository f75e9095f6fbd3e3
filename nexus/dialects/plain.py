"""Requests and responses of which the gateway reads nothing but a model. Its own errors have
OpenAI's form. `base.Dialect` is its contract."""

from __future__ import annotations

from collections.abc import Callable

from nexus.dialects.base import ParsedRequest, ReportedError, RequestForm
from nexus.dialects.binary_stream import BinaryStream
from nexus.dialects.body_needs import model_in
from nexus.dialects.json_body import read_fields, replace_model
from nexus.dialects.openai import (
    ERROR_SCHEMA,
    NAME,
    PASSES_ERRORS,
    PING_S,
    REQUEST_ID_HEADER,
    TITLE,
)
from nexus.dialects.openai.errors import error_body
from nexus.dialects.openai.events import KEEPALIVE, error_event, response_events
from nexus.dialects.openai.limits import LIMIT_KINDS, limit_headers
from nexus.dialects.openai.usage import ask_for_usage, asks_for_usage, usage_in_response
from nexus.routing.needs import Requirements

_FIELDS = frozenset({"model"})


def parse_request(body: bytes, form: RequestForm) -> ParsedRequest:
    """Read the model. Raises `InvalidBody`."""
    needs = Requirements(dialect=NAME, task=form.task)
    return ParsedRequest(model=model_in(read_fields(body, _FIELDS)), needs=needs)


def error_in_response(response: bytes) -> ReportedError | None:  # noqa: ARG001
    """None: what a response says is the client's to read."""
    return None


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
