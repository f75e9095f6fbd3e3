"""Types that the records of the configuration share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from nexus.providers import PROVIDERS

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Text = Annotated[str, Meta(min_length=1)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]

if TYPE_CHECKING:
    BackendType = str
else:
    # The registered kinds, so that messages, pages and completions list them.
    BackendType = Literal[tuple(PROVIDERS)]
Zone = Literal["open", "internal", "confidential", "restricted"]
LogLevel = Literal["trace", "debug", "info", "warn", "error"]
LogFormat = Literal["pretty", "json"]
Task = Literal[
    "chat", "embeddings", "rerank", "moderation", "classify", "images", "transcription", "speech"
]
Dialect = Literal["openai", "anthropic", "responses"]
TranslationName = Literal["messages-to-chat", "responses-to-chat", "chat-to-messages"]
Strategy = Literal["smart", "round_robin", "priority_only", "random"]

MAX_ALIAS_DEPTH = 3
MAX_BACKENDS = 500
"""The load table has columns for so many, and some more for backends that were just removed."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file; the keys keep their names from the file."""


@cache  # finding them takes milliseconds, and a file may have thousands of keys
def hints_of(record: type[msgspec.Struct]) -> dict[str, Any]:
    """The type of each setting of a record, by its name in the file."""
    hints = get_type_hints(record, include_extras=True)
    return {field.encode_name: hints[field.name] for field in msgspec.structs.fields(record)}


def repeated(names: Iterable[str]) -> list[str]:
    """The names that are given more than once, sorted."""
    return sorted(name for name, times in Counter(names).items() if times > 1)


def doc(text: str) -> Meta:
    """The line of documentation of a key."""
    return Meta(description=text)
