"""Anthropic's protocol, as its own API and compatible servers speak it. `base.Dialect` is its
contract."""

from __future__ import annotations

from nexus.dialects.anthropic.errors import error_body, error_in_response
from nexus.dialects.anthropic.events import KEEPALIVE, error_event, response_events
from nexus.dialects.anthropic.limits import LIMIT_KINDS, limit_headers
from nexus.dialects.anthropic.request import parse_request
from nexus.dialects.anthropic.stream import open_stream
from nexus.dialects.anthropic.usage import usage_in_response
from nexus.dialects.json_body import replace_model
from nexus.dialects.responses.usage import ask_for_usage, asks_for_usage

NAME = "anthropic"
TITLE = "Anthropic"
ERROR_SCHEMA = "AnthropicError"
PASSES_ERRORS = True
PING_S = 10.0
REQUEST_ID_HEADER = "request-id"
