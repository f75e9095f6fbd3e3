"""The reader of Anthropic's streams, whose events have names."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects.anthropic.errors import error_body, error_in
from nexus.dialects.anthropic.events import error_event
from nexus.dialects.anthropic.usage import Counts, UsageFields
from nexus.dialects.base import ReportedError, Usage
from nexus.dialects.event_stream import NamedEventStream, type_in
from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.openai.errors import error_in_response as foreign_error_in
from nexus.http.sse import Event

_DELTA = b"event: content_block_delta\ndata: "
_DELTA_DATA = len(_DELTA)
_LONGEST_MESSAGE = 500


class _Message(msgspec.Struct):
    usage: UsageFields | None = None


class _Data(msgspec.Struct):
    message: _Message | None = None
    usage: UsageFields | None = None


_decode = lenient(msgspec.json.Decoder(_Data).decode)


class AnthropicStream(NamedEventStream):
    """Reads one stream; `StreamReader` documents the interface.

    The first `content_block_delta` is its first content, `message_stop` its end. A delta is not
    parsed: its name says what it is.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._counts = Counts()

    def _count_output(self, piece: bytes) -> bool:
        if piece[:_DELTA_DATA] != _DELTA or piece.find(b"\n", _DELTA_DATA) != len(piece) - 2:
            return False
        self.deltas += 1
        return True

    def _understand(self, event: Event, data: bytes) -> bytes:
        kind = event.kind or type_in(data)
        if kind == b"ping":
            self.alive_at = self.last_at
            return event.raw
        if kind == b"message_stop" and type_in(data) == kind:  # else it is cut within
            self.done = self.content = True
            return event.raw
        self.events += 1
        if kind == b"content_block_delta":
            self.deltas += 1
            self._mark_output()
        elif kind == b"error":
            own = error_in(data) if type_in(data) == b"error" else None
            self.error = own or _in_own_form(foreign_error_in(data), data)
            self.done = True  # nothing follows, and clients leave at once
        elif not kind and (error := foreign_error_in(data)) is not None:
            # In OpenAI's form, as LiteLLM sends it. Clients see only errors that have a name.
            self.error, self.done = _in_own_form(error, data), True
            return error_event(error.message, status=error.status, code=None)
        elif kind in (b"message_start", b"message_delta"):
            self._read_usage(data)
            if kind == b"message_delta":
                self.content = True  # a message without content ends, too
        return event.raw

    def _read_usage(self, data: bytes) -> None:
        try:
            found = _decode(data)
        except UNREADABLE:
            return
        fields = found.message.usage if found.message is not None else found.usage
        if fields is not None:
            self._counts.update(fields)

    @property
    def usage(self) -> Usage | None:
        return self._counts.usage


def _in_own_form(error: ReportedError | None, data: bytes) -> ReportedError:
    """An error that is not in Anthropic's form, as one that is. Without `error`, `data` is its
    text."""
    text, status = data[:_LONGEST_MESSAGE].decode(errors="replace") or "no message", 500
    if error is not None:
        text, status = error.message, error.status
    return ReportedError(text, status, error_body(text, status=status, code=None))


open_stream = AnthropicStream
