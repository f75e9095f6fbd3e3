"""The reader of the Responses API's streams, whose events have names."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects.base import Usage
from nexus.dialects.event_stream import NamedEventStream, type_in
from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.openai.errors import error_in_response as foreign_error_in
from nexus.dialects.responses.errors import ErrorFields, reported_error
from nexus.dialects.responses.events import error_event
from nexus.dialects.responses.usage import StoredFields, UsageFields, sealed_in, usage_of
from nexus.http.sse import Event

_EVENT = b"event: response."
_DELTA = b".delta\ndata: "
_BEFORE, _AFTER = 6, len(_DELTA) - 6
_STARTS = frozenset({b"response.created", b"response.queued", b"response.in_progress"})
_ENDS = frozenset({b"response.completed", b"response.incomplete"})
_FAILURES = frozenset({b"response.failed", b"error"})
_PINGS = frozenset({b"ping", b"keepalive"})


class _Response(StoredFields):
    usage: UsageFields | None = None
    error: ErrorFields | None = None


class _Data(ErrorFields):
    response: _Response | None = None
    error: ErrorFields | None = None
    sequence_number: Any = None


_decode = lenient(msgspec.json.Decoder(_Data).decode)


class ResponsesStream(NamedEventStream):
    """Reads one stream; `StreamReader` documents the interface.

    The first delta of any kind is its first content. A delta is not parsed: its name says what it
    is.
    """

    _usage: Usage | None = None
    _first_number = 0

    def _count_output(self, piece: bytes) -> bool:
        end = piece.find(b"\n")
        if (
            piece[:16] != _EVENT
            or piece[end - _BEFORE : end + _AFTER] != _DELTA
            or piece.find(b"\n", end + 1) != len(piece) - 2
        ):
            return False
        self.deltas += 1
        return True

    def _understand(self, event: Event, data: bytes) -> bytes:
        kind = event.kind or type_in(data)
        if kind in _PINGS or data == b"[DONE]":
            self.alive_at = self.last_at
            return event.raw
        self.events += 1
        if kind.endswith(b".delta"):
            self.deltas += 1
            self._mark_output()
        elif kind in _STARTS:
            if not self.stored_ids:
                self._read(data)
        elif kind in _ENDS:
            if self._read(data):  # else it is cut within
                self.done = self.content = True
                if (name := sealed_in(data)) is not None:
                    self.stored_ids += (name,)
        elif kind in _FAILURES:
            self._read(data, failed=True)
            self.done = True  # nothing follows, and clients leave at once
        elif not kind and (error := foreign_error_in(data)) is not None:
            # In the form of OpenAI's other streams, in which some clients would not see it.
            self.error, self.done = error, True
            return error_event(
                error.message, status=error.status, code=None, number=self.next_number - 1
            )
        else:
            self.alive_at = self.last_at  # the backend works: it searches, it runs a tool
        return event.raw

    def _read(self, data: bytes, *, failed: bool = False) -> bool:
        """Read what an event says; False if it is cut within."""
        odd = False
        try:
            fields = _decode(data)
        except UNREADABLE as error:
            fields, odd = _Data(), isinstance(error, msgspec.ValidationError)
        response = fields.response
        if response is not None:
            self.stored_ids = response.ids() or self.stored_ids
            self._usage = usage_of(response.usage) or self._usage
        if self.events == 1 and type(fields.sequence_number) is int:
            self._first_number = fields.sequence_number
        if failed:
            self.error = reported_error((response and response.error) or fields.error or fields)
        return odd or response is not None

    @property
    def next_number(self) -> int:
        return self._first_number + self.events

    @property
    def usage(self) -> Usage | None:
        return self._usage


open_stream = ResponsesStream
