"""What a request for a message asks of a model, read from the few fields that say so."""

from __future__ import annotations

import re
from typing import ClassVar

from nexus.dialects.base import ParsedRequest, RequestForm
from nexus.dialects.body_needs import BodyNeeds, parse_body
from nexus.dialects.estimate import STATED

_FIELDS = STATED | {"model", "stream", "messages", "system", "tools"}
"""Fields that the gateway reads."""


class _MessageNeeds(BodyNeeds):
    dialect: ClassVar[str] = "anthropic"
    IMAGE: ClassVar[re.Pattern[bytes]] = re.compile(rb'"type"\s*:\s*"(?:image|document)"')
    BEFORE: ClassVar[tuple[str, ...]] = ("tools", "system")


def parse_request(body: bytes, form: RequestForm) -> ParsedRequest:
    """Read the model, whether a stream is asked for, and the needs; everything else is left to the
    backend. Raises `InvalidBody`."""
    return parse_body(body, form, _FIELDS, _MessageNeeds)
