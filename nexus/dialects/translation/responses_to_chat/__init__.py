"""Clients of OpenAI's Responses API on a backend that speaks only chat completions."""

from __future__ import annotations

from nexus.dialects import openai, responses
from nexus.dialects.translation.responses_to_chat.events import ResponseEvents
from nexus.dialects.translation.responses_to_chat.fields import RULES
from nexus.dialects.translation.responses_to_chat.request import translate_request
from nexus.dialects.translation.responses_to_chat.response import translate_response
from nexus.dialects.translation.translation import Translation

RESPONSES_TO_CHAT = Translation(
    name="responses-to-chat",
    path="/v1/chat/completions",
    client=responses,
    backend=openai,
    request_rules=RULES,
    request=translate_request,
    response=translate_response,
    events=ResponseEvents,
)
