"""The reader of OpenAI's streams, for chat and text completions."""

from __future__ import annotations

from collections import deque
from typing import Any

from nexus.dialects.base import Usage
from nexus.dialects.event_stream import EventStream
from nexus.dialects.openai.chunk import (
    Choice,
    choices_in,
    may_report,
    parse_chunk,
    timings_in,
    without_usage,
)
from nexus.http.sse import Event

_PINGS = frozenset({b"ping", b"keepalive", b"keep-alive", b"heartbeat"})
"""Names of events that only show that the backend is alive."""
_DONE = b"[DONE]"
"""The start of the event that ends a stream, as OpenAI's clients recognize it."""
_LONGEST_KEPT = 4 * 1024
"""Bytes of an event that may be kept until the end of the stream. A longer event is parsed when
it comes."""
_LAST = 16
"""Trailing events kept to read the finish reasons; it bounds the number of choices that can be
checked."""


class OpenAIStream(EventStream):
    """Reads one stream; `StreamReader` documents the interface.

    Once output has come, events that report neither usage nor an error are counted unparsed. The
    last of them are kept, because only they can have finish reasons, and parsed if somebody asks.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._usage: Usage | None = None
        self._token_events = 0
        self._last: deque[bytes | list[Choice]] = deque(maxlen=_LAST)

    def _count_output(self, piece: bytes) -> bool:
        if (
            piece[:6] != b"data: "
            or (end := len(piece) - 2) >= _LONGEST_KEPT
            or piece.find(b"\n") != end
            or piece.find(b'"usage"') >= 0  # faster than `in`, which raises an exception first
            or piece.find(b'"error"') >= 0
            or piece[6:12] == _DONE
        ):
            return False
        self._token_events += 1  # `counted_tokens` corrects it if it was only the end
        self._last.append(piece)
        return True

    def _understand(self, event: Event, data: bytes) -> bytes:
        if data[:6] == _DONE:
            self.done = self.content = True
        elif not data or data.isspace() or event.kind in _PINGS:
            self.alive_at = self.last_at
        else:
            self.events += 1
            small = len(data) <= _LONGEST_KEPT
            if self.first_token_at and small and event.kind != b"error" and not may_report(data):
                self._token_events += 1
                self._last.append(data)
            else:
                return self._parse(event, data, small=small)
        return event.raw

    def _parse(self, event: Event, data: bytes, *, small: bool) -> bytes:
        facts = parse_chunk(data, event.kind)
        if facts.usage is not None and not (self._usage and _is_zero(facts.usage)):
            self._usage = facts.usage
        if facts.usage_only and self._hide_usage:
            last = self._last[-1] if self._last else b""
            previous = last.removeprefix(b"data: ") if isinstance(last, bytes) else b""
            shown = without_usage(data, previous)
            return event.raw if shown is None else shown
        if facts.error is not None:
            self.error = facts.error
        if facts.token:
            self._token_events += 1
            self._mark_output()
        if facts.content:
            self.content = True
        if facts.alive:
            self.alive_at = self.last_at
        if facts.choices is not None:
            self._last.append(data if small else facts.choices)
        return event.raw

    @property
    def usage(self) -> Usage | None:
        """The usage in OpenAI's form, or in llama.cpp's timings."""
        if self._usage is None:
            for event in reversed(self._last):
                if isinstance(event, bytes) and b'"timings"' in event:
                    self._usage = timings_in(event.removeprefix(b"data: "))
                    break
        return self._usage

    @property
    def finished(self) -> bool:
        """Whether `[DONE]` has come, or a finish reason for every choice of the last events."""
        if self.done:
            return True
        ended: dict[str, bool] = {}
        for event in self._last:
            for choice in _choices(event):
                ended[choice.number] = ended.get(choice.number, False) or choice.ends
        return bool(ended) and all(ended.values())

    def counted_tokens(self) -> int:
        return max(0, self._token_events - sum(map(_only_ends, self._last)))


def _choices(event: bytes | list[Choice]) -> list[Choice]:
    return choices_in(event.removeprefix(b"data: ")) if isinstance(event, bytes) else event


def _is_zero(usage: Usage) -> bool:
    return not usage.prompt_tokens and not usage.completion_tokens


def _only_ends(event: bytes | list[Choice]) -> bool:
    """Whether an event that was counted as a token without being parsed only has a finish
    reason."""
    if not isinstance(event, bytes) or b'"finish_reason"' not in event or may_report(event):
        return False
    choices = _choices(event)
    return any(choice.ends for choice in choices) and not any(choice.token for choice in choices)


open_stream = OpenAIStream
