"""OpenAI's clients on a backend that speaks only Anthropic's API."""

from __future__ import annotations

from nexus.dialects import anthropic, openai
from nexus.dialects.translation.chat_to_messages.events import ChunkEvents
from nexus.dialects.translation.chat_to_messages.fields import RULES
from nexus.dialects.translation.chat_to_messages.request import translate_request
from nexus.dialects.translation.chat_to_messages.response import translate_response
from nexus.dialects.translation.translation import Translation

CHAT_TO_MESSAGES = Translation(
    name="chat-to-messages",
    path="/v1/messages",
    client=openai,
    backend=anthropic,
    request_rules=RULES,
    request=translate_request,
    response=translate_response,
    events=ChunkEvents,
)
