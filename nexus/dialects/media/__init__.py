"""OpenAI's protocol for images and speech, whose streams and usage are not those of its chat.
`base.Dialect` is its contract."""

from __future__ import annotations

from nexus.dialects.json_body import replace_model
from nexus.dialects.media.request import characters, parse_request
from nexus.dialects.media.stream import open_stream
from nexus.dialects.media.usage import images, seconds, usage_in_response
from nexus.dialects.openai import (
    ERROR_SCHEMA,
    NAME,
    PASSES_ERRORS,
    PING_S,
    REQUEST_ID_HEADER,
    TITLE,
)
from nexus.dialects.openai.errors import error_body, error_in_response
from nexus.dialects.openai.events import KEEPALIVE, error_event, response_events
from nexus.dialects.openai.limits import LIMIT_KINDS, limit_headers
from nexus.dialects.responses.usage import ask_for_usage, asks_for_usage
