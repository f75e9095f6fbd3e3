"""What a request for a response requires of a model, read from the few fields that say so."""

from __future__ import annotations

import re
from typing import ClassVar

from nexus.dialects.base import ParsedRequest, Prompt, RequestForm
from nexus.dialects.body_needs import BodyNeeds, parse_body
from nexus.dialects.estimate import STATED
from nexus.dialects.responses.usage import sealed_in

_FIELDS = STATED | {
    "model", "stream", "input", "instructions", "tools", "text", "prompt",
    "previous_response_id", "conversation",
}  # fmt: skip
"""Fields that the gateway reads."""


class _ResponseNeeds(BodyNeeds):
    dialect: ClassVar[str] = "responses"
    IMAGE: ClassVar[re.Pattern[bytes]] = re.compile(rb'"type"\s*:\s*"input_image"')
    BEFORE: ClassVar[tuple[str, ...]] = ("tools", "instructions")
    FORMAT: ClassVar[str] = "text"


def parse_request(body: bytes, form: RequestForm) -> ParsedRequest:
    """Read the model, whether a stream is requested, and the needs. Raises `InvalidBody`."""
    return parse_body(body, form, _FIELDS, _ResponseNeeds)


def sealed(prompt: Prompt) -> str | None:
    """The name of the first item of the input that is encrypted; None if none is."""
    items = prompt.fields.get("input") if isinstance(prompt, _ResponseNeeds) else None
    return None if items is None else sealed_in(bytes(items))


def named_ids(prompt: Prompt) -> list[str]:
    """The ids of what the backend must have stored: the previous response, the conversation."""
    paths = ("previous_response_id", "conversation", "conversation.id")
    return [name for path in paths if (name := prompt.text_of(path))]
