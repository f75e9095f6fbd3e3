"""vLLM, and SGLang like it: OpenAI's list of models, with the context as `max_model_len` and nothing else."""

from __future__ import annotations

from nexus.fleet.records import Model
from nexus.providers.openai import read_model
from nexus.providers.probing import Fetch, ProbeResult, items, length


def probe(fetch: Fetch) -> ProbeResult:
    models = []
    for item in items(fetch("/v1/models"), "data"):
        if (model := read_model(item)) is not None:
            models.append(Model(name=model.name, context_length=length(item.get("max_model_len"))))
    return ProbeResult(models)
