"""What a request asks of a model, read from the few fields of its body that say so."""

from __future__ import annotations

import re
from typing import ClassVar

from nexus.dialects.base import ParsedRequest, RequestForm
from nexus.dialects.body_needs import BodyNeeds, parse_body
from nexus.dialects.estimate import STATED

_FIELDS = STATED | {
    "model", "stream", "stream_options", "messages", "prompt", "input", "tools", "response_format",
}  # fmt: skip
"""Fields that the gateway reads in requests to any endpoint, beside the prompts of the endpoint."""


class _OpenAINeeds(BodyNeeds):
    dialect: ClassVar[str] = "openai"
    IMAGE: ClassVar[re.Pattern[bytes]] = re.compile(rb'"type"\s*:\s*"(?:image_url|input_image)"')
    BEFORE: ClassVar[tuple[str, ...]] = ("tools",)


def parse_request(body: bytes, form: RequestForm) -> ParsedRequest:
    """Read the model, whether a stream is asked for, and the needs; everything else is left to the
    backend. Raises `InvalidBody`."""
    return parse_body(body, form, _FIELDS, _OpenAINeeds)
