"""OpenAI's protocol, as its own and all compatible servers speak it. `base.Dialect` is its
contract."""

from __future__ import annotations

from nexus.dialects.json_body import replace_model
from nexus.dialects.openai.errors import error_body, error_in_response
from nexus.dialects.openai.events import KEEPALIVE, error_event, response_events
from nexus.dialects.openai.limits import LIMIT_KINDS, limit_headers
from nexus.dialects.openai.request import parse_request
from nexus.dialects.openai.stream import open_stream
from nexus.dialects.openai.usage import ask_for_usage, asks_for_usage, usage_in_response

NAME = "openai"
TITLE = "OpenAI"
ERROR_SCHEMA = "Error"
PASSES_ERRORS = False
PING_S = 0.0
REQUEST_ID_HEADER = None
