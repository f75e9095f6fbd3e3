"""Ollama: `/api/tags` lists models, `/api/show` has what the list lacks, `/api/ps` what is
loaded."""

from __future__ import annotations

import re
from typing import Any

from nexus.providers.base import DIALECTS, Provider
from nexus.providers.probing import (
    BadProbeResponse,
    Fetch,
    Model,
    ProbeResult,
    dicts,
    fetch_optional,
    first_length,
    objects,
    tasks,
    text,
    texts,
    value_at,
)

_NUM_CTX = re.compile(r"^num_ctx\s+(\d+)\s*$", re.MULTILINE)


def probe(fetch: Fetch) -> ProbeResult:
    listed = objects(fetch("/api/tags"), "models")
    running = dicts(fetch_optional(fetch, "/api/ps").get("models"))
    loaded = {item.get("name"): item.get("context_length") for item in running}
    models = []
    for item in listed:
        if name := text(item, "name") or text(item, "model"):
            capabilities = item.get("capabilities")
            context = value_at(item, "details", "context_length")
            if texts(capabilities) is None or first_length(context) is None:
                version = text(item, "digest") or text(item, "modified_at") or ""
                shown = _show(fetch, name, version)
                capabilities, context = shown[0] or capabilities, shown[1] or context
            context = first_length(loaded.get(name), context)
            models.append(_model(name, texts(capabilities), context))
    return ProbeResult(models)


def _model(name: str, capabilities: tuple[str, ...] | None, context: int | None) -> Model:
    if capabilities is None:
        return Model(name=name, context_length=context)
    return Model(
        name=name,
        context_length=context,
        vision="vision" in capabilities,
        tools="tools" in capabilities,
        # Many versions embed with chat models as well, without listing that.
        tasks=() if "completion" in capabilities else tasks(capabilities),
    )


def _show(fetch: Fetch, name: str, version: str) -> tuple[Any, int | None]:
    """Capabilities and context length of a model; (None, None) if `/api/show` fails."""
    try:
        shown = fetch("/api/show", {"model": name}, version=version)
    except BadProbeResponse:
        return None, None
    info, parameters = value_at(shown, "model_info"), value_at(shown, "parameters")
    num_ctx = _NUM_CTX.search(parameters) if isinstance(parameters, str) else None
    longest = None
    if isinstance(info, dict):
        lengths = (value for key, value in info.items() if key.endswith(".context_length"))
        longest = first_length(*lengths)
    return (
        value_at(shown, "capabilities"),
        first_length(int(num_ctx[1]) if num_ctx else None, longest),
    )


def canonical_name(name: str) -> str:
    """Ollama ignores case and its own registry's prefixes, and takes no tag for `:latest`."""
    form = name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return form if ":" in form.rpartition("/")[2] else f"{form}:latest"


PROVIDER = Provider(
    name="ollama",
    self_hosted=True,
    probe=probe,
    recognizes=lambda _: True,  # No other server answers /api/tags in this form.
    canonical_name=canonical_name,
    own_api=True,
    dialects=DIALECTS,
    version=("/api/version", "version"),
)
