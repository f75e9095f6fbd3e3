"""One stream on its way from a backend to a client: what it says of itself, and when. No I/O.

The bytes go on as they came, in whole events: one that breaks off never reaches the client, who
could not read the error that is told after it. Only the event with the usage is changed for a
client that did not ask for the usage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.openai.usage import Usage, timings_usage, usage_in
from nexus.http.sse import Event, EventReader
from nexus.runtime.text import mask_key

_NOT_CONTENT = frozenset({"role", "name", "provider_specific_fields"})
"""Keys of a delta that carry no piece of the answer. All others do: each kind of backend has its
own for reasoning."""
_PINGS = frozenset({b"ping", b"keepalive", b"keep-alive", b"heartbeat"})
"""Names of events that only show that the backend is alive."""
_FRAME = frozenset({"id", "object", "created", "model", "choices", "usage"})
"""Keys of the event with the usage whose values the events before it have, too, or that are the
usage."""
_EMPTY = frozenset({b"null", b'""', b"[]", b"{}"})
_EMPTY_CHOICE = {
    False: msgspec.Raw(b'[{"index":0,"delta":{},"logprobs":null,"finish_reason":null}]'),
    True: msgspec.Raw(b'[{"index":0,"text":"","logprobs":null,"finish_reason":null}]'),
}
"""Clients that did not ask for the usage read `choices[0]` of every event. True for text
completions."""
_LONGEST_HELD = 64 * 1024
"""An event that is longer goes on before it is complete; it is not the one with the usage."""
_LONGEST_KEPT = 4 * 1024
"""Bytes of an event that may be kept until the stream's end. A longer event is parsed when it
comes."""
_ERROR_WITHIN = 256
"""Bytes at an answer's beginning in which it tells of an error, if it is one."""
_LAST = 16
"""How many of a stream's last events are kept, to see how its choices ended; so many of them can
be told of."""


class _Fields(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: Any = None
    object: Any = None
    type: Any = None
    message: Any = None
    code: Any = None
    prompt_progress: Any = None
    choices: list[Any] | None = None


class _Whole(_Fields):
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Timed(msgspec.Struct):
    timings: msgspec.Raw = msgspec.Raw(b"null")


class _Choice(NamedTuple):
    """What an event says of one choice: whether it has a reason for finishing, and a piece of
    the answer."""

    number: str
    ends: bool
    token: bool


_decode = lenient(msgspec.json.Decoder(_Fields).decode)
_decode_whole = lenient(msgspec.json.Decoder(_Whole).decode)
_decode_timed = lenient(msgspec.json.Decoder(_Timed).decode)
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Stream:
    """Takes the bytes of one stream and gives those that the client gets.

    Times are on `clock`, in seconds. `content` is reached by whatever the client should see,
    `first_token_at` (0 until then) by the first piece of the answer: text, a tool call, reasoning.
    `alive_at` (0 until then) is when the last sign of life came: a comment, a ping, or an event
    without choices. `events` counts those with data; `error_status` is the status of an answer that
    would say what `error` does, `error_data` what it would say.
    """

    def __init__(
        self, *, clock: Callable[[], float], hide_usage: bool, own_key: str | None = None
    ) -> None:
        """`own_key` is the gateway's, which is masked if an error repeats it."""
        self._own_key = own_key
        self._clock = clock
        self._reader = EventReader()
        self._hide_usage = hide_usage
        self._hidden = False
        self._passed_on = 0
        self._between_events = True
        self._last: deque[bytes | list[_Choice]] = deque(maxlen=_LAST)
        self._usage: Usage | None = None
        self.error: str | None = None
        self.error_status = 0
        self.error_data = b""
        self.content = False
        self.done = False
        self.events = 0
        self.first_token_at = 0.0
        self.alive_at = 0.0
        self._token_events = 0
        self.last_at = 0.0
        self.longest_gap_s = 0.0

    def take(self, piece: bytes) -> bytes:
        """Look at the next bytes; gives what is to be passed on now."""
        now = self._clock()
        if self.first_token_at:
            if (gap_s := now - self.last_at) > self.longest_gap_s:
                self.longest_gap_s = gap_s
            self.last_at = now
            # One whole event with a piece of the answer and nothing else to tell, as nearly all
            # are.
            if (
                self._between_events
                and piece[:6] == b"data: "
                and piece[-2:] == b"\n\n"
                and (end := len(piece) - 2) < _LONGEST_KEPT
                and piece.find(b"\n") == end
                and b"\r" not in piece
                and b'"usage"' not in piece
                and b'"error"' not in piece
                and piece != b"data: [DONE]\n\n"
            ):
                self.events += 1
                self._token_events += (
                    1  # but for the one that only says why it ends, which is seen to at the end
                )
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
            if event.tail:
                shown = b"" if self._hidden else event.raw
            else:
                shown = self._shown(event)
                self._hidden = shown is not event.raw
            if self._passed_on:
                kept.append(event.raw[self._passed_on :])  # its beginning has gone on already
                self._passed_on = 0
            elif shown:
                kept.append(shown)
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
        shown = self._shown(event)
        return event.raw[self._passed_on :] if self._passed_on else shown

    def _shown(self, event: Event) -> bytes:
        """Understand an event; gives what the client gets of it, `event.raw` itself where that
        is all of it."""
        if event.data is None:
            self.alive_at = self.last_at
            return event.raw
        if self._look(event.data, event.kind) and self._hide_usage:
            return self._without_usage(event)
        if self.error is not None:
            return mask_key(event.raw, self._own_key)
        return event.raw

    def _without_usage(self, event: Event) -> bytes:
        """The event with the usage as a client gets it that did not ask: nothing, unless it
        carries something that the event before it did not, such as llama.cpp's timings."""
        assert event.data is not None
        before = self._last[-1] if self._last else b""
        try:
            fields = _decode_raw(event.data)
            known = (
                _decode_raw(before.removeprefix(b"data: "))
                if before and isinstance(before, bytes)
                else {}
            )
        except UNREADABLE:
            return event.raw  # it cannot be taken apart, and what is in it must not be lost
        if all(
            name in _FRAME or name in known or bytes(value) in _EMPTY
            for name, value in fields.items()
        ):
            return b""
        del fields["usage"]
        fields["choices"] = _EMPTY_CHOICE[bytes(fields.get("object", b"")) == b'"text_completion"']
        return b"data: " + msgspec.json.encode(fields) + b"\n\n"

    @property
    def within_event(self) -> bool:
        """Whether the client has the beginning of an event whose end has not come."""
        return self._passed_on > 0

    @property
    def usage(self) -> Usage | None:
        """How many tokens the backend said that it took: as OpenAI's usage, or in llama.cpp's
        timings."""
        if self._usage is None:
            timed = [
                event for event in self._last if isinstance(event, bytes) and b'"timings"' in event
            ]
            self._usage = _timings(timed[-1]) if timed else None
        return self._usage

    @property
    def finished(self) -> bool:
        """Whether it came to its end: `[DONE]`, or a reason for finishing of every choice that
        its last events have."""
        if self.done:
            return True
        ended: dict[str, bool] = {}
        for choice in [choice for event in self._last for choice in _choices(event)]:
            ended[choice.number] = ended.get(choice.number, False) or choice.ends
        return bool(ended) and all(ended.values())

    def counted_tokens(self) -> int:
        """How many events carried a piece of the answer, which is about how many tokens came
        where nobody tells."""
        return max(0, self._token_events - sum(map(_only_ends, self._last)))

    def _look(self, data: bytes, kind: bytes) -> bool:
        """Understand an event as far as it tells something new; gives whether it tells the usage
        and nothing else."""
        if data == b"[DONE]":
            self.done = self.content = True
            return False
        if not data or data.isspace() or kind in _PINGS:
            self.alive_at = self.last_at
            return False
        self.events += 1
        if (
            self.first_token_at
            and kind != b"error"
            and len(data) <= _LONGEST_KEPT
            and not _tells(data)
        ):
            self._token_events += (
                1  # but for the one that only says why it ends, which is seen to at the end
            )
            self._last.append(data)
            return False
        return self._understand(data, kind)

    def _understand(self, data: bytes, kind: bytes) -> bool:
        try:
            fields = _decode(data)
        except UNREADABLE:
            self._token()  # not of a form that we know: the client is the one to understand it
            if kind == b"error":
                self.error, self.error_status = data.decode(errors="replace")[:500], 500
            return False
        if fields.error or fields.object == "error" or kind == b"error":
            self.error, self.error_status, self.error_data = *_error(fields), data
            return False
        usage = usage_in(fields.usage) if fields.usage != b"null" else None
        if usage is not None:
            self._usage = usage
        choices = [choice for choice in fields.choices or () if isinstance(choice, dict)]
        if fields.choices is not None and not any(map(_says_something, choices)):
            if usage is not None:
                return True
            if not choices:
                self.alive_at = self.last_at
        seen = [_choice(choice) for choice in choices]
        self._last.append(data if len(data) <= _LONGEST_KEPT else seen)
        if fields.choices is None:
            if fields.type in ("ping", "keepalive", "heartbeat"):
                self.alive_at = self.last_at
            else:
                self._token()
        elif any(choice.token for choice in seen):
            self._token()
        elif fields.prompt_progress or any(choice.ends for choice in seen):
            self.content = True
        return False

    def _token(self) -> None:
        self.content = True
        self._token_events += 1
        if not self.first_token_at:
            self.first_token_at = self.last_at


def _tells(data: bytes) -> bool:
    """Whether an event may tell the usage or an error; a usage of null, which some send with
    each event, is none."""
    if b'"error"' in data:
        return True
    return b'"usage"' in data and b'"usage":null' not in data and b'"usage": null' not in data


def error_in(answer: bytes) -> tuple[str, int] | None:
    """What a whole answer says that tells of an error and nothing else, whatever its status,
    with the status that would say the same; None for any other. OpenRouter, for one, answers so
    where it fails after it has sent the head."""
    if b'"error"' not in answer[:_ERROR_WITHIN]:
        return None
    try:
        fields = _decode_whole(answer)
    except UNREADABLE:
        return None
    return (
        _error(fields)
        if fields.error and not fields.choices and fields.data is msgspec.UNSET
        else None
    )


def _error(fields: _Fields) -> tuple[str, int]:
    reported = fields.error or fields.message
    message = reported.get("message") if isinstance(reported, dict) else reported
    status = _status_of(reported if isinstance(reported, dict) else {"code": fields.code})
    return str(message or "no message")[:500], status


_STATUS_OF = {
    "invalid_request_error": 400,
    "rate_limit_error": 429,
    "overloaded_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
}
"""Types and codes of errors, as OpenAI and Anthropic name them, with the status that goes with
them."""


def _status_of(error: dict[str, Any]) -> int:
    """The status of an answer that would say what an error within a stream says: its code where
    that is one, else by its code's or its type's name."""
    code = str(error.get("code"))
    if code.isascii() and code.isdecimal() and len(code) == 3:
        return int(code)
    return _STATUS_OF.get(code) or _STATUS_OF.get(str(error.get("type")), 500)


def _has_token(choice: dict[str, Any]) -> bool:
    """Whether a choice carries a piece of the answer."""
    delta = choice.get("delta") or choice.get("message")
    return bool(choice.get("text")) or (
        isinstance(delta, dict)
        and any(value and key not in _NOT_CONTENT for key, value in delta.items())
    )


def _says_something(choice: dict[str, Any]) -> bool:
    """Whether a choice has anything but its index: LiteLLM sends one that has not with the
    usage."""
    delta = choice.get("delta")
    return (any(delta.values()) if isinstance(delta, dict) else bool(delta)) or any(
        value for key, value in choice.items() if key not in ("index", "delta")
    )


def _choice(choice: dict[str, Any]) -> _Choice:
    return _Choice(str(choice.get("index")), bool(choice.get("finish_reason")), _has_token(choice))


def _choices(event: bytes | list[_Choice]) -> list[_Choice]:
    if not isinstance(event, bytes):
        return event
    try:
        choices = _decode(event.removeprefix(b"data: ")).choices or ()
    except UNREADABLE:
        return []
    return [_choice(choice) for choice in choices if isinstance(choice, dict)]


def _only_ends(event: bytes | list[_Choice]) -> bool:
    """Whether an event that was counted for a token without being parsed only says why the
    stream ends."""
    if not isinstance(event, bytes) or b'"finish_reason"' not in event or _tells(event):
        return False
    choices = _choices(event)
    return any(choice.ends for choice in choices) and not any(choice.token for choice in choices)


def _timings(event: bytes) -> Usage | None:
    try:
        return timings_usage(_decode_timed(event.removeprefix(b"data: ")).timings)
    except UNREADABLE:
        return None
