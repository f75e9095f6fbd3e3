"""LM Studio: OpenAI's list of models, and `/api/v0/models` for what each model can do."""

from __future__ import annotations

from typing import Any

from nexus.providers.base import DIALECTS, Provider
from nexus.providers.model_list import read_model_list
from nexus.providers.probing import (
    Fetch,
    Model,
    ProbeResult,
    dicts,
    fetch_optional,
    first_length,
    text,
    texts,
)


def probe(fetch: Fetch) -> ProbeResult:
    models = read_model_list(fetch).models
    listed = dicts(fetch_optional(fetch, "/api/v0/models").get("data"))
    details = {text(item, "id"): item for item in listed}
    return ProbeResult([_read(details[m.name], m.name) if m.name in details else m for m in models])


def _read(item: dict[str, Any], name: str) -> Model:
    kind = item.get("type")
    loaded = item.get("loaded_context_length") if item.get("state") == "loaded" else None
    return Model(
        name=name,
        context_length=first_length(loaded, item.get("max_context_length")),
        vision={"vlm": True, "llm": False}.get(kind) if isinstance(kind, str) else None,
        # It marks models that were trained for tools; the others accept tools as well.
        tools=True if "tool_use" in (texts(item.get("capabilities")) or ()) else None,
        tasks=("embeddings",) if kind in ("embeddings", "embedding") else (),
    )


PROVIDER = Provider(name="lmstudio", probe=probe, own_api=True, dialects=DIALECTS, self_hosted=True)
