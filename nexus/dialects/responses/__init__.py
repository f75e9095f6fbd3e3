"""OpenAI's Responses API, as its own and compatible servers speak it. `base.Dialect` is its
contract."""

from __future__ import annotations

from nexus.dialects.json_body import replace_model
from nexus.dialects.openai.errors import error_body
from nexus.dialects.openai.events import KEEPALIVE
from nexus.dialects.openai.limits import LIMIT_KINDS, limit_headers
from nexus.dialects.responses.errors import error_in_response
from nexus.dialects.responses.events import error_event, response_events
from nexus.dialects.responses.request import named_ids, parse_request, sealed
from nexus.dialects.responses.stream import open_stream
from nexus.dialects.responses.usage import (
    ask_for_usage,
    asks_for_usage,
    background_state,
    stored_ids,
    usage_in_response,
)

NAME = "responses"
TITLE = "OpenAI Responses"
ERROR_SCHEMA = "Error"
PASSES_ERRORS = True
PING_S = 0.0
REQUEST_ID_HEADER = None
