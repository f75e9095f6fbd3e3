"""Anthropic's clients on a backend that speaks only OpenAI's chat completions."""

from __future__ import annotations

from nexus.dialects import anthropic, openai
from nexus.dialects.translation.messages_to_chat.events import MessageEvents
from nexus.dialects.translation.messages_to_chat.fields import RULES
from nexus.dialects.translation.messages_to_chat.request import translate_request
from nexus.dialects.translation.messages_to_chat.response import translate_response
from nexus.dialects.translation.translation import Translation

MESSAGES_TO_CHAT = Translation(
    name="messages-to-chat",
    path="/v1/chat/completions",
    client=anthropic,
    backend=openai,
    request_rules=RULES,
    request=translate_request,
    response=translate_response,
    events=MessageEvents,
)
