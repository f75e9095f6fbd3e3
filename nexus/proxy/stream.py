"""One stream on its way from a backend to a client: what it says of itself, and when. No I/O.

The bytes go on as they came, in whole events: one that breaks off never reaches the client, who could not read the
error that is told after it. Only an event that tells the usage to a client which did not ask for it is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from nexus.proxy.sse import Event, EventReader
from nexus.proxy.usage import Usage, usage_in

_CONTENT_KEYS = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call", "refusal", "audio")
_LONGEST_HELD = 64 * 1024
"""An event that is longer goes on before it is complete; it is not the one with the usage."""


_ERROR_WITHIN = 256
"""Bytes at an answer's beginning in which it tells of an error, if it is one."""
_LAST = 16
"""How many of a stream's last events are kept, to see how its choices ended; so many of them can be told of."""


class _Fields(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: Any = None
    object: Any = None
    message: Any = None
    code: Any = None
    choices: list[Any] | None = None


class _Whole(_Fields):
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(_Fields).decode
_decode_whole = msgspec.json.Decoder(_Whole).decode


class Stream:
    """Takes the bytes of one stream and gives those that the client gets.

    Times are on `clock`, in seconds. `content` is reached by whatever the client should see, `first_token_at` (0 until
    then) by the first piece of the answer: text, a tool call, reasoning. `events` counts those with data;
    `error_status` is the status of an answer that would say what `error` does, `error_data` what it would say.
    """

    def __init__(self, *, clock: Callable[[], float], hide_usage: bool) -> None:
        self._clock = clock
        self._reader = EventReader()
        self._hide_usage = hide_usage
        self._hidden = False
        self._passed_on = 0
        self._between_events = True
        self._last: deque[bytes] = deque(maxlen=_LAST)
        self.usage: Usage | None = None
        self.error: str | None = None
        self.error_status = 0
        self.error_data = b""
        self.content = False
        self.done = False
        self.events = 0
        self.first_token_at = 0.0
        self._token_events = 0
        self.last_at = 0.0
        self.longest_gap_s = 0.0

    def take(self, piece: bytes) -> bytes:
        """Look at the next bytes; gives what is to be passed on now."""
        now = self._clock()
        if self.first_token_at:
            self.longest_gap_s = max(self.longest_gap_s, now - self.last_at)
            self.last_at = now
            # One whole event with a piece of the answer and nothing else to tell, as nearly all are.
            if (
                self._between_events
                and piece[:6] == b"data: "
                and piece[-2:] == b"\n\n"
                and piece.find(b"\n") == len(piece) - 2
                and b"\r" not in piece
                and b'"usage"' not in piece
                and b'"error"' not in piece
                and piece != b"data: [DONE]\n\n"
            ):
                self.events += 1
                self._token_events += 1  # but for the one that only says why it ends, which is seen to at the end
                self._last.append(piece)
                return piece
        self.last_at = now
        shown = self._whole_events(self._reader.feed(piece))
        self._between_events = self._reader.between_events
        return shown

    def failed(self) -> None:
        """It ends here, not by itself: the silence that went before is one as any other."""
        if self.first_token_at:
            self.longest_gap_s = max(self.longest_gap_s, self.quiet_s())

    def quiet_s(self) -> float:
        """For how long nothing has come."""
        return self._clock() - self.last_at

    def _whole_events(self, events: list[Event]) -> bytes:
        kept = []
        for event in events:
            if not event.tail:
                only_usage = event.data is not None and self._look(event.data, event.kind)
                self._hidden = only_usage and self._hide_usage
            if self._passed_on:
                kept.append(event.raw[self._passed_on :])  # its beginning has gone on already
                self._passed_on = 0
            elif not self._hidden:
                kept.append(event.raw)
        pending = self._reader.pending
        if self._passed_on or len(pending) > _LONGEST_HELD:
            kept.append(bytes(pending[self._passed_on :]))
            self._passed_on = len(pending)
        return kept[0] if len(kept) == 1 else b"".join(kept)

    def end(self) -> bytes:
        """The stream has ended; gives what was still held back."""
        event = self._reader.rest()
        if event is None:
            return b""
        only_usage = event.data is not None and self._look(event.data, event.kind)
        return b"" if only_usage and self._hide_usage else event.raw[self._passed_on :]

    @property
    def within_event(self) -> bool:
        """Whether the client has the beginning of an event whose end has not come."""
        return self._passed_on > 0

    @property
    def finished(self) -> bool:
        """Whether it came to its end: `[DONE]`, or a reason for finishing of every choice that its last events have."""
        ended: dict[str, bool] = {}
        for choice in [choice for data in self._last for choice in _choices(data)]:
            index = str(choice.get("index"))
            ended[index] = ended.get(index, False) or bool(choice.get("finish_reason"))
        return self.done or (bool(ended) and all(ended.values()))

    def counted_tokens(self) -> int:
        """How many events carried a piece of the answer, which is about how many tokens came where nobody tells."""
        ends = sum(_finish_reason(data) and not _tells(data) and not _carries_token(data) for data in self._last)
        return max(0, self._token_events - ends)

    def _look(self, data: bytes, kind: bytes) -> bool:
        """Understand an event as far as it tells something new; gives whether it tells the usage and nothing else."""
        if data == b"[DONE]":
            self.done = self.content = True
            return False
        if not data or data.isspace():
            return False  # a sign of life
        self.events += 1
        self._last.append(b"data: " + data)
        if self.first_token_at and kind != b"error" and not _tells(data):
            self._token_events += 1  # but for the one that only says why it ends, which is seen to at the end
            return False
        return self._understand(data, kind)

    def _understand(self, data: bytes, kind: bytes) -> bool:
        try:
            fields = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._token()  # not of a form that we know: the client is the one to understand it
            if kind == b"error":
                self.error, self.error_status = data.decode(errors="replace")[:500], 500
            return False
        if fields.error or fields.object == "error" or kind == b"error":
            self.error, self.error_status, self.error_data = *_error(fields), data
            return False
        usage = usage_in(fields.usage) if fields.usage != b"null" else None
        if usage is not None:
            self.usage = usage
        if not fields.choices and fields.choices is not None:
            return usage is not None
        choices = [choice for choice in fields.choices or () if isinstance(choice, dict)]
        if fields.choices is None or any(map(_has_token, choices)):
            self._token()
        elif any(choice.get("finish_reason") for choice in choices):
            self.content = True
        return False

    def _token(self) -> None:
        self.content = True
        self._token_events += 1
        if not self.first_token_at:
            self.first_token_at = self.last_at


def _tells(data: bytes) -> bool:
    """Whether an event may tell the usage or an error; a usage of null, which some send with each event, is none."""
    if b'"error"' in data:
        return True
    return b'"usage"' in data and b'"usage":null' not in data and b'"usage": null' not in data


def error_in(answer: bytes) -> tuple[str, int] | None:
    """What a whole answer says that tells of an error and nothing else, whatever its status, with the status that would
    say the same; None for any other. OpenRouter, for one, answers so where it fails after it has sent the head."""
    if b'"error"' not in answer[:_ERROR_WITHIN]:
        return None
    try:
        fields = _decode_whole(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return _error(fields) if fields.error and not fields.choices and fields.data is msgspec.UNSET else None


def _error(fields: _Fields) -> tuple[str, int]:
    told = fields.error or fields.message
    message = told.get("message") if isinstance(told, dict) else told
    status = _status_of(told if isinstance(told, dict) else {"code": fields.code})
    return str(message or "no message")[:500], status


_STATUS_OF = {
    "invalid_request_error": 400, "rate_limit_error": 429, "overloaded_error": 429, "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
}  # fmt: skip
"""Types and codes of errors, as OpenAI and Anthropic name them, with the status that goes with them."""


def _status_of(error: dict[str, Any]) -> int:
    """The status of an answer that would say what an error within a stream says: its code where that is one, else by
    its code's or its type's name."""
    code = str(error.get("code"))
    if code.isascii() and code.isdecimal() and len(code) == 3:
        return int(code)
    return _STATUS_OF.get(code) or _STATUS_OF.get(str(error.get("type")), 500)


def _has_token(choice: dict[str, Any]) -> bool:
    """Whether a choice carries a piece of the answer."""
    delta = choice.get("delta")
    return bool(choice.get("text")) or (isinstance(delta, dict) and any(delta.get(key) for key in _CONTENT_KEYS))


def _choices(event: bytes) -> list[dict[str, Any]]:
    try:
        return [choice for choice in _decode(event[6:]).choices or () if isinstance(choice, dict)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _finish_reason(data: bytes) -> bool:
    return b'"finish_reason"' in data and any(choice.get("finish_reason") for choice in _choices(data))


def _carries_token(data: bytes) -> bool:
    return any(map(_has_token, _choices(data)))
