"""What a request for an image or for speech requires of a model."""

from __future__ import annotations

import re
from typing import ClassVar

import msgspec

from nexus.dialects.base import ParsedRequest, RequestForm
from nexus.dialects.body_needs import BodyNeeds, characters_in, parse_body
from nexus.dialects.estimate import STATED
from nexus.dialects.json_body import read_fields

_FIELDS = STATED | {"model", "stream", "stream_format", "prompt", "input"}
"""Fields that the gateway reads."""


class _MediaNeeds(BodyNeeds):
    dialect: ClassVar[str] = "openai"
    IMAGE: ClassVar[re.Pattern[bytes]] = re.compile(rb"(?!)")
    BEFORE: ClassVar[tuple[str, ...]] = ()


def parse_request(body: bytes, form: RequestForm) -> ParsedRequest:
    """Read the model, whether a stream is requested, and the needs. Raises `InvalidBody`."""
    parsed = parse_body(body, form, _FIELDS, _MediaNeeds)
    needs = parsed.needs
    if isinstance(needs, _MediaNeeds) and needs.text_of("stream_format") == "sse":
        return msgspec.structs.replace(parsed, stream=True)
    return parsed


def characters(body: bytes) -> float:
    """The characters of the text to be spoken, in a body that was parsed."""
    raw = bytes(read_fields(body).get("input", b""))
    return max(0, characters_in(raw) - len('""'))
