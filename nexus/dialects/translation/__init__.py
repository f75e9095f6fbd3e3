"""Translations between the protocols of clients and backends, by their names."""

from __future__ import annotations

from collections.abc import Mapping

from nexus.dialects.translation.chat_to_messages import CHAT_TO_MESSAGES
from nexus.dialects.translation.messages_to_chat import MESSAGES_TO_CHAT
from nexus.dialects.translation.responses_to_chat import RESPONSES_TO_CHAT
from nexus.dialects.translation.translation import Translation

TRANSLATIONS: Mapping[str, Translation] = {
    one.name: one for one in (MESSAGES_TO_CHAT, RESPONSES_TO_CHAT, CHAT_TO_MESSAGES)
}
"""Name → translation. A request form names those that its requests can go through."""
