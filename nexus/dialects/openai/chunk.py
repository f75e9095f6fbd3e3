"""What one event of an OpenAI stream says. Pure functions."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from nexus.dialects.base import ReportedError, Usage
from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.openai.errors import ErrorFields, reported_error
from nexus.dialects.openai.usage import parse_timings, parse_usage, usage_of

_NO_OUTPUT = frozenset({"role", "name", "provider_specific_fields"})
"""Keys of a delta that carry no output. All others do: each kind of backend has its own key for
reasoning."""
_PING_TYPES = frozenset({"ping", "keepalive", "heartbeat"})
_FRAME = frozenset({"id", "object", "created", "model", "choices", "usage"})
"""Keys of the usage event that earlier events have, too, or that are the usage."""
_NULL = msgspec.Raw(b"null")
_EMPTY = frozenset({b"null", b'""', b"[]", b"{}"})
_EMPTY_CHOICE = {
    False: msgspec.Raw(b'[{"index":0,"delta":{},"logprobs":null,"finish_reason":null}]'),
    True: msgspec.Raw(b'[{"index":0,"text":"","logprobs":null,"finish_reason":null}]'),
}
"""Clients that did not ask for the usage read `choices[0]` of every event. True for text
completions."""


class _Fields(ErrorFields):
    usage: msgspec.Raw = _NULL
    prompt_progress: Any = None
    choices: list[Any] | None = None


class _Timed(msgspec.Struct):
    timings: msgspec.Raw = _NULL


class Choice(NamedTuple):
    """What an event says of one choice.

    Attributes:
        number: Its index, as text.
        ends: It has a finish reason.
        token: It carries a piece of output.
    """

    number: str
    ends: bool
    token: bool


class ChunkFacts(NamedTuple):
    """What an event says.

    Attributes:
        error: The error that it reports.
        usage: The usage that it reports.
        usage_only: It says nothing else.
        token: It carries a piece of output.
        content: It carries something that the client should see: output, an end, progress.
        alive: It only shows that the backend works.
        choices: What it says of choices; None if the event is no chunk of a response.
    """

    error: ReportedError | None = None
    usage: Usage | None = None
    usage_only: bool = False
    token: bool = False
    content: bool = False
    alive: bool = False
    choices: list[Choice] | None = None


_decode = lenient(msgspec.json.Decoder(_Fields).decode)
_decode_timed = lenient(msgspec.json.Decoder(_Timed).decode)
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def parse_chunk(data: bytes, kind: bytes = b"") -> ChunkFacts:
    """Read the data of an event. `kind` is the name in its `event:` field."""
    try:
        fields = _decode(data)
    except UNREADABLE:  # of an unknown form, which the client may understand
        text = data.decode(errors="replace")[:500]
        return ChunkFacts(
            error=ReportedError(text, 500, b"") if kind == b"error" else None, token=True
        )
    if fields.error or fields.object == "error" or kind == b"error":
        return ChunkFacts(error=reported_error(fields, data))
    usage = parse_usage(fields.usage) if fields.usage != _NULL else None
    raw = [choice for choice in fields.choices or () if isinstance(choice, dict)]
    if usage is None:  # Moonshot reports it within the last choice
        usage = next(filter(None, [usage_of(choice.get("usage")) for choice in raw]), None)
    if fields.choices is None and usage is None:
        ping = fields.type in _PING_TYPES
        return ChunkFacts(token=not ping, alive=ping, choices=[])
    if usage is not None and not any(map(_says_something, raw)):
        return ChunkFacts(usage=usage, usage_only=True)
    choices = [_choice(choice) for choice in raw]
    return ChunkFacts(
        usage=usage,
        token=any(choice.token for choice in choices),
        content=bool(fields.prompt_progress) or any(choice.ends for choice in choices),
        alive=not choices,
        choices=choices,
    )


def choices_in(data: bytes) -> list[Choice]:
    """What a chunk says of its choices; empty if it cannot be read."""
    try:
        choices = _decode(data).choices or ()
    except UNREADABLE:
        return []
    return [_choice(choice) for choice in choices if isinstance(choice, dict)]


def may_report(data: bytes) -> bool:
    """Whether an event may report the usage or an error. Some servers send a usage of null with
    each event."""
    if b'"error"' in data:
        return True
    return b'"usage"' in data and b'"usage":null' not in data and b'"usage": null' not in data


def timings_in(data: bytes) -> Usage | None:
    """The usage in the `timings` that llama.cpp sends with its last chunk."""
    try:
        return parse_timings(_decode_timed(data).timings)
    except UNREADABLE:
        return None


def without_usage(data: bytes, previous: bytes) -> bytes | None:
    """A usage event for a client that did not ask for the usage.

    It is empty unless it carries something that the previous event did not, such as llama.cpp's
    timings. None if the event cannot be taken apart.
    """
    try:
        fields = _decode_raw(data)
        known = _decode_raw(previous) if previous else {}
    except UNREADABLE:
        return None
    if all(
        name in _FRAME or name in known or bytes(value) in _EMPTY for name, value in fields.items()
    ):
        return b""
    del fields["usage"]
    fields["choices"] = _EMPTY_CHOICE[bytes(fields.get("object", b"")) == b'"text_completion"']
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def _choice(choice: dict[str, Any]) -> Choice:
    return Choice(str(choice.get("index")), bool(choice.get("finish_reason")), _has_token(choice))


def _has_token(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or choice.get("message")
    return bool(choice.get("text")) or (
        isinstance(delta, dict)
        and any(value and key not in _NO_OUTPUT for key, value in delta.items())
    )


def _says_something(choice: dict[str, Any]) -> bool:
    """Whether a choice has more than its index. LiteLLM sends one with the usage that has not."""
    delta = choice.get("delta")
    return (any(delta.values()) if isinstance(delta, dict) else bool(delta)) or any(
        value for key, value in choice.items() if key not in ("index", "delta")
    )
