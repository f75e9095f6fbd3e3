"""Ollama: `/api/tags` lists the models, `/api/show` says what it left out, `/api/ps` how they are loaded."""

from __future__ import annotations

import re
from typing import Any

from nexus.fleet.records import Model
from nexus.providers.probing import (
    BadProbeResponse,
    Fetch,
    ProbeResult,
    at,
    fetch_if_there,
    items,
    length,
    tasks,
    text,
    texts,
)

_NUM_CTX = re.compile(r"^num_ctx\s+(\d+)\s*$", re.MULTILINE)


def probe(fetch: Fetch) -> ProbeResult:
    listed = items(fetch("/api/tags"), "models")
    running = fetch_if_there(fetch, "/api/ps").get("models")
    loaded = {
        item.get("name"): item.get("context_length")
        for item in (running if isinstance(running, list) else ())
        if isinstance(item, dict)
    }
    models = []
    for item in listed:
        if name := text(item, "name") or text(item, "model"):
            capabilities, context = item.get("capabilities"), at(item, "details", "context_length")
            if texts(capabilities) is None or length(context) is None:
                shown = _show(fetch, name, text(item, "digest") or text(item, "modified_at") or "")
                capabilities, context = shown[0] or capabilities, shown[1] or context
            models.append(_read(name, texts(capabilities), length(loaded.get(name), context)))
    return ProbeResult(models)


def _read(name: str, capabilities: tuple[str, ...] | None, context: int | None) -> Model:
    if capabilities is None:
        return Model(name=name, context_length=context)
    return Model(
        name=name,
        context_length=context,
        vision="vision" in capabilities,
        tools="tools" in capabilities,
        # Many versions embed with chat models too, without saying so.
        tasks=() if "completion" in capabilities else tasks(capabilities),
    )


def _show(fetch: Fetch, name: str, version: str) -> tuple[Any, int | None]:
    """Capabilities and context length; nothing where it does not answer: the list alone shows the backend alive."""
    try:
        shown = fetch("/api/show", {"model": name}, version=version)
    except BadProbeResponse:
        return None, None
    info = at(shown, "model_info")
    parameters = at(shown, "parameters")
    given = _NUM_CTX.search(parameters) if isinstance(parameters, str) else None
    longest = (
        length(*(value for key, value in info.items() if key.endswith(".context_length")))
        if isinstance(info, dict)
        else None
    )
    return at(shown, "capabilities"), length(int(given[1]) if given else None, longest)
