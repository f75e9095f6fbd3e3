"""LM Studio: `/v1/models` has what can be asked for, `/api/v0/models` what each model can do."""

from __future__ import annotations

from typing import Any

from nexus.fleet.records import Model
from nexus.providers import openai
from nexus.providers.probing import Fetch, ProbeResult, fetch_if_there, length, text, texts


def probe(fetch: Fetch) -> ProbeResult:
    models = openai.list_models(fetch)
    listed = fetch_if_there(fetch, "/api/v0/models").get("data")
    details = {
        text(item, "id"): item
        for item in (listed if isinstance(listed, list) else ())
        if isinstance(item, dict)
    }
    return ProbeResult(
        [
            _read(details[model.name], model.name) if model.name in details else model
            for model in models
        ]
    )


def _read(item: dict[str, Any], name: str) -> Model:
    kind, embeddings = item.get("type"), ("embeddings", "embedding")
    loaded = item.get("loaded_context_length") if item.get("state") == "loaded" else None
    return Model(
        name=name,
        context_length=length(loaded, item.get("max_context_length")),
        vision={"vlm": True, "llm": False}.get(kind) if isinstance(kind, str) else None,
        # It names the models that were trained for tools, and lets the others try.
        tools=True if "tool_use" in (texts(item.get("capabilities")) or ()) else None,
        tasks=("embeddings",) if kind in embeddings else (),
    )
