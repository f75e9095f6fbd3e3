"""What whole responses with images and transcripts report: tokens, images, seconds of audio."""

from __future__ import annotations

from typing import Any

import msgspec

from nexus.dialects.base import Usage
from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.openai import usage as openai_usage
from nexus.dialects.responses import usage as responses_usage

_MOST_SECONDS = 10**7


class _Fields(msgspec.Struct):
    data: list[msgspec.Raw] | None = None
    usage: Any = None
    duration: Any = None


_decode = lenient(msgspec.json.Decoder(_Fields).decode)


def usage_in_response(response: bytes, *, lenient: bool = False) -> Usage | None:
    """The usage that a whole response reports, in either of OpenAI's forms; None without one."""
    usage = responses_usage.usage_in_response(response, lenient=lenient)
    return usage or openai_usage.usage_in_response(response, lenient=lenient)


def images(response: bytes) -> float:
    """The images in a whole response."""
    try:
        return len(_decode(response).data or ())
    except UNREADABLE:
        return 0


def seconds(response: bytes) -> float:
    """The seconds of audio that a whole response reports."""
    try:
        fields = _decode(response)
    except UNREADABLE:
        return 0
    return seconds_in(fields.usage) or seconds_in({"seconds": fields.duration})


def seconds_in(usage: Any) -> float:
    """The seconds of audio in a `usage` object; 0 if it has none."""
    value = usage.get("seconds") if isinstance(usage, dict) else None
    if not isinstance(value, int | float) or value is True or not 0 <= value <= _MOST_SECONDS:
        return 0.0
    return float(value)
