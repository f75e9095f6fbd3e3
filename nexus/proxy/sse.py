"""Server-sent events, read as they pass: the bytes go on untouched, this only looks at them.

Format: the HTML standard, section 9.2 (lines end with LF, CR or CRLF; an empty line ends an event).
"""

from __future__ import annotations

from typing import Any

import msgspec

_CONTENT_KEYS = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call", "refusal", "audio")


class EventReader:
    """Cuts a stream, in any pieces, into the data of its events."""

    def __init__(self) -> None:
        self._partial: list[bytes] = []
        self._data: list[bytes] = []
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The `data` of each event that this piece completes; several `data:` lines are joined by LF."""
        if self._after_cr and piece[:1] == b"\n":
            piece = piece[1:]
        if not piece:
            return []
        self._after_cr = piece[-1:] == b"\r"
        if b"\n" not in piece and b"\r" not in piece:
            self._partial.append(piece)
            return []
        if self._partial:
            self._partial.append(piece)
            piece = b"".join(self._partial)
            self._partial.clear()
        events: list[bytes] = []
        for line in piece.splitlines(keepends=True):
            text = line.rstrip(b"\r\n")
            if len(text) == len(line):
                self._partial.append(line)
            elif text.startswith(b"data:"):
                self._data.append(text[5:].removeprefix(b" "))
            elif not text and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events

    def rest(self) -> list[bytes]:
        """What a stream that ended without a last empty line still held."""
        if self._partial:
            line = b"".join(self._partial)
            self._partial.clear()
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        events = [b"\n".join(self._data)] if self._data else []
        self._data.clear()
        return events


class Usage(msgspec.Struct):
    """OpenAI's token usage, as far as it is counted."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Event(msgspec.Struct):
    usage: Usage | None = None
    error: Any = None
    choices: list[Any] | None = None


class _Answer(msgspec.Struct):
    usage: Usage | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


def usage_of(answer: bytes) -> Usage | None:
    """The usage that an answer reports; None where it reports none or is not what OpenAI's would be."""
    if b'"usage"' not in answer:
        return None
    try:
        return _decode_answer(answer).usage
    except msgspec.DecodeError:
        return None


class StreamObserver:
    """What a stream says of itself. JSON is parsed only in events that could tell something not known yet."""

    def __init__(self) -> None:
        self._events = EventReader()
        self.usage: Usage | None = None
        self.error: str | None = None
        self.content = False
        self.finished = False

    def feed(self, piece: bytes) -> None:
        for event in self._events.feed(piece):
            self._look(event)

    def end(self) -> None:
        for event in self._events.rest():
            self._look(event)

    def _look(self, event: bytes) -> None:
        if event == b"[DONE]":
            self.finished = self.content = True
            return
        told = b'"usage"' in event or b'"error"' in event or b'"finish_reason"' in event
        if self.content and not told:
            return
        try:
            fields = _decode_event(event)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.content = True  # not of a form that we know: the client is the one to understand it
            return
        if fields.error:
            message = fields.error.get("message") if isinstance(fields.error, dict) else fields.error
            self.error = str(message or "no message")[:500]
        if fields.usage is not None:
            self.usage = fields.usage
        choices = [choice for choice in fields.choices or () if isinstance(choice, dict)]
        self.finished = self.finished or any(choice.get("finish_reason") for choice in choices)
        self.content = self.content or fields.choices is None or any(_has_content(choice) for choice in choices)


def _has_content(choice: dict[str, Any]) -> bool:
    if choice.get("text") or choice.get("finish_reason"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, dict) and any(delta.get(key) for key in _CONTENT_KEYS)
