"""The reader of streams of images, speech, and transcripts."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects.base import ReportedError, Usage
from nexus.dialects.event_stream import EventStream
from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.media.usage import seconds_in
from nexus.dialects.openai.errors import ErrorFields, reported_error
from nexus.dialects.openai.usage import parse_usage
from nexus.dialects.responses.usage import UsageFields, usage_of
from nexus.http.sse import Event

_PINGS = ("ping", "keepalive")


class _Data(ErrorFields):
    usage: Any = None


_decode = lenient(msgspec.json.Decoder(_Data).decode)


class MediaStream(EventStream):
    """Reads one stream; `StreamReader` documents the interface.

    Its end is an event whose type ends with `.completed` (one for each image) or `.done`, or
    `[DONE]`.
    """

    _usage: Usage | None = None
    _ended = False

    def _count_output(self, piece: bytes) -> bool:  # noqa: ARG002 - each event is parsed
        return False

    def _understand(self, event: Event, data: bytes) -> bytes:
        if data == b"[DONE]":
            self.done = self.content = self._ended = True
            return event.raw
        try:
            fields = _decode(data)
        except UNREADABLE:
            fields = _Data()
        kind = event.kind.decode(errors="replace") or str(fields.type or "")
        if kind in _PINGS:
            self.alive_at = self.last_at
            return event.raw
        self.events += 1
        if fields.error or kind == "error":
            failed = bool(fields.error)
            self.error = (
                reported_error(fields, data) if failed else ReportedError("no message", 500, data)
            )
            return event.raw
        self._read_usage(fields)
        if kind.endswith((".completed", ".done")):
            self._ended = self.content = True
            self.units += 1.0 if kind.endswith(".completed") else seconds_in(fields.usage)
        self._mark_output()
        return event.raw

    def _read_usage(self, fields: _Data) -> None:
        if isinstance(fields.usage, dict):
            raw = msgspec.json.encode(fields.usage)
            try:
                found = usage_of(msgspec.json.decode(raw, type=UsageFields))
            except msgspec.DecodeError:
                found = None
            self._usage = found or parse_usage(raw) or self._usage

    @property
    def usage(self) -> Usage | None:
        return self._usage

    @property
    def finished(self) -> bool:
        return self._ended and self.error is None

    def counted_tokens(self) -> int:
        """None are counted: a piece of an image or of audio is no token."""
        return 0


open_stream = MediaStream
