"""OpenAI's list of models (`GET /v1/models`), with what servers add to its entries."""

from __future__ import annotations

from typing import Any

from nexus.providers.probing import (
    Fetch,
    Model,
    ProbeResult,
    first_length,
    flag,
    objects,
    tasks,
    text,
    texts,
    value_at,
)


def read_model_list(fetch: Fetch) -> ProbeResult:
    """The models that the server lists."""
    entries = map(read_entry, objects(fetch("/v1/models"), "data"))
    return ProbeResult([model for model in entries if model is not None])


def read_entry(entry: dict[str, Any]) -> Model | None:
    """One entry of the list, in any form in use; None if it names no model.

    The context length is `max_model_len` in vLLM and SGLang, `meta.n_ctx` in llama.cpp,
    `context_length` in OpenRouter, `context_window` in Groq, `max_context_length` in Mistral, and
    `max_input_tokens` in LiteLLM. Capabilities are a table in Mistral, a list in infinity,
    `architecture` and `supported_parameters` in OpenRouter, `mode` and flags in LiteLLM.
    """
    name = text(entry, "id")
    if name is None:
        return None
    inputs = texts(value_at(entry, "architecture", "input_modalities"))
    parameters = texts(entry.get("supported_parameters"))
    capabilities, mode = entry.get("capabilities"), entry.get("mode")
    vision = flag(value_at(capabilities, "vision"))
    if vision is None:
        vision = flag(entry.get("supports_vision")) if inputs is None else "image" in inputs
    tools = flag(value_at(capabilities, "function_calling"))
    if tools is None and parameters is None:
        tools = flag(entry.get("supports_function_calling"))
    elif tools is None and parameters is not None:
        tools = "tools" in parameters
    return Model(
        name=name,
        context_length=first_length(
            entry.get("max_model_len"),
            value_at(entry, "meta", "n_ctx"),
            entry.get("context_length"),
            entry.get("context_window"),
            entry.get("max_context_length"),
            entry.get("max_input_tokens"),
        ),
        vision=vision,
        tools=tools,
        json_mode=True if parameters is not None and "response_format" in parameters else None,
        tasks=tasks([mode] if isinstance(mode, str) else texts(capabilities) or ()),
        aliases=tuple(alias for alias in texts(entry.get("aliases")) or () if alias != name),
    )
