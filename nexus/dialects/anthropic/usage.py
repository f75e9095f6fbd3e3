"""Anthropic's token usage: every response and every stream reports it unasked."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects.base import Usage
from nexus.dialects.counts import count, detail
from nexus.dialects.lenient_json import UNREADABLE, lenient


class UsageFields(msgspec.Struct):
    """The counts of a `usage` object. Tokens that were read from a cache, or written to it, are
    not among `input_tokens`; those of a compaction are only in `iterations`."""

    input_tokens: Any = None
    output_tokens: Any = None
    cache_read_input_tokens: Any = None
    cache_creation_input_tokens: Any = None
    cache_creation: Any = None
    output_tokens_details: Any = None
    iterations: Any = None


class _Response(msgspec.Struct):
    usage: UsageFields | None = None


_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)
_FOR_AN_HOUR, _THINKING = "ephemeral_1h_input_tokens", "thinking_tokens"
_decode = msgspec.json.Decoder(_Response).decode
_decode_leniently = lenient(_decode)


class Counts:
    """The counts of one response. Of each, the last value over 0 holds: in a stream they are
    cumulative. What compactions took is added."""

    __slots__ = ("_compactions", "_counts")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._compactions: dict[str, int] = {}

    def update(self, fields: UsageFields) -> None:
        counts = self._counts
        found = [(name, count(getattr(fields, name))) for name in _COUNTS]
        found.append((_FOR_AN_HOUR, detail(fields.cache_creation, _FOR_AN_HOUR)))
        found.append((_THINKING, detail(fields.output_tokens_details, _THINKING)))
        for name, value in found:
            if value is not None and (value or name not in counts):
                counts[name] = value
        if isinstance(fields.iterations, list):
            self._compactions = _of_compactions(fields.iterations)

    @property
    def usage(self) -> Usage | None:
        """What was reported so far; None if that is neither input nor output."""
        get = self._get
        completion, cached = get("output_tokens"), get("cache_read_input_tokens")
        written = get("cache_creation_input_tokens")
        prompt = get("input_tokens")
        if prompt is not None:
            prompt += (cached or 0) + (written or 0)
        elif completion is None:
            return None
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=cached,
            reasoning_tokens=get(_THINKING),
            cache_write_tokens=written,
            cache_write_1h_tokens=get(_FOR_AN_HOUR) or 0,
        )

    def _get(self, name: str) -> int | None:
        more = self._compactions.get(name)
        return self._counts.get(name) if not more else self._counts.get(name, 0) + more


def _of_compactions(iterations: list[Any]) -> dict[str, int]:
    """The counts of all compactions in a list of iterations, which the other counts leave out."""
    entries = [
        one for one in iterations if isinstance(one, dict) and one.get("type") == "compaction"
    ]
    return {name: count(sum(count(one.get(name)) or 0 for one in entries)) or 0 for name in _COUNTS}


def usage_in_response(response: bytes, *, lenient: bool = False) -> Usage | None:
    """The usage that a whole response reports; None if it reports none in Anthropic's form."""
    if b'"usage"' not in response:
        return None
    try:
        fields = (_decode_leniently if lenient else _decode)(response).usage
    except UNREADABLE:
        return None
    if fields is None:
        return None
    counts = Counts()
    counts.update(fields)
    return counts.usage
