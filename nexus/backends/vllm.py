"""vLLM: OpenAI's model list, with the context length as `max_model_len`."""

from __future__ import annotations

from typing import Any

from nexus.backends.guessing import guess
from nexus.backends.probing import Fetch, items, text
from nexus.fleet.records import Model


def probe(fetch: Fetch) -> list[Model]:
    models = []
    for item in items(fetch("/v1/models"), "data"):
        if name := text(item, "id"):
            length = item.get("max_model_len")
            known: dict[str, Any] = {}
            if isinstance(length, int) and length > 0:
                known = {"context_length": length, "context_known": True}
            models.append(guess(name, **known))
    return models
