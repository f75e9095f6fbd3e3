"""Ollama: `/api/tags` lists the models, `/api/show` tells what each can do."""

from __future__ import annotations

from typing import Any

from nexus.backends.guessing import guess
from nexus.backends.probing import BadAnswer, Fetch, items, text
from nexus.fleet.records import Model


def probe(fetch: Fetch) -> list[Model]:
    models = []
    for item in items(fetch("/api/tags"), "models"):
        name = text(item, "name") or text(item, "model")
        if name:
            models.append(guess(name, **_known(fetch, name, text(item, "digest") or text(item, "modified_at") or "")))
    return models


def _known(fetch: Fetch, name: str, version: str) -> dict[str, Any]:
    """What `/api/show` says; nothing where it does not answer, since the list alone proves the backend alive."""
    try:
        shown = fetch("/api/show", {"model": name}, version=version)
    except BadAnswer:
        return {}
    known: dict[str, Any] = {}
    if not isinstance(shown, dict):
        return known
    capabilities = shown.get("capabilities")
    if isinstance(capabilities, list):
        known = {"vision": "vision" in capabilities, "tools": "tools" in capabilities}
    info = shown.get("model_info")
    for key, value in info.items() if isinstance(info, dict) else ():
        if key.endswith(".context_length") and isinstance(value, int) and value > 0:
            known |= {"context_length": value, "context_known": True}
    return known
