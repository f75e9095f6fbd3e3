"""Whatever has OpenAI's list of models: OpenAI itself, exo, vLLM, and many that say more in it."""

from __future__ import annotations

from typing import Any

from nexus.fleet.records import Model
from nexus.providers.probing import Fetch, ProbeResult, at, flag, items, length, tasks, text, texts


def probe(fetch: Fetch) -> ProbeResult:
    return ProbeResult(list_models(fetch))


def list_models(fetch: Fetch) -> list[Model]:
    return [
        model
        for item in items(fetch("/v1/models"), "data")
        if (model := read_model(item)) is not None
    ]


def read_model(item: dict[str, Any]) -> Model | None:
    """One entry of a list, in any of the forms in use.

    vLLM and SGLang say `max_model_len`, llama.cpp `meta.n_ctx`, LiteLLM `max_input_tokens` and `mode`, OpenRouter
    `context_length`, `architecture` and `supported_parameters`, Groq `context_window`, Mistral
    `max_context_length` and a table of `capabilities`, infinity a list of `capabilities`.
    """
    name = text(item, "id")
    if name is None:
        return None
    inputs = texts(at(item, "architecture", "input_modalities"))
    parameters = texts(item.get("supported_parameters"))
    capabilities = item.get("capabilities")
    mode = item.get("mode")
    vision = flag(at(capabilities, "vision"))
    if vision is None:
        vision = flag(item.get("supports_vision")) if inputs is None else "image" in inputs
    tools = flag(at(capabilities, "function_calling"))
    if tools is None:
        tools = (
            flag(item.get("supports_function_calling"))
            if parameters is None
            else "tools" in parameters
        )
    return Model(
        name=name,
        context_length=length(
            item.get("max_model_len"),
            at(item, "meta", "n_ctx"),
            item.get("context_length"),
            item.get("context_window"),
            item.get("max_context_length"),
            item.get("max_input_tokens"),
        ),
        vision=vision,
        tools=tools,
        json_mode=True if parameters is not None and "response_format" in parameters else None,
        tasks=tasks([mode] if isinstance(mode, str) else texts(capabilities) or ()),
        aliases=tuple(alias for alias in texts(item.get("aliases")) or () if alias != name),
    )
