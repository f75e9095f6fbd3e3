"""vLLM: OpenAI's list of models, with the context length as `max_model_len`."""

from __future__ import annotations

from nexus.providers.base import DIALECTS, Provider
from nexus.providers.model_list import read_entry
from nexus.providers.probing import Fetch, Model, ProbeResult, first_length, objects


def probe(fetch: Fetch) -> ProbeResult:
    """Names and context lengths. Other fields of an entry are not vLLM's and are not read."""
    return ProbeResult(
        [
            Model(name=model.name, context_length=first_length(entry.get("max_model_len")))
            for entry in objects(fetch("/v1/models"), "data")
            if (model := read_entry(entry)) is not None
        ]
    )


def recognizes(result: ProbeResult) -> bool:
    """No other server's list has `max_model_len` for each model."""
    return bool(result.models) and all(model.context_length for model in result.models)


PROVIDER = Provider(
    name="vllm",
    probe=probe,
    recognizes=recognizes,
    dialects=DIALECTS,
    version=("/version", "version"),
    self_hosted=True,
    takes=frozenset({"top_k", "reasoning_effort"}),
)
