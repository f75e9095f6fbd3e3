"""llama.cpp's server: `/health`, OpenAI's list of models, and `/props` for what its model can
do."""

from __future__ import annotations

import msgspec

from nexus.providers.base import DIALECTS, Provider
from nexus.providers.model_list import read_model_list
from nexus.providers.probing import (
    BadProbeResponse,
    Fetch,
    ProbeResult,
    fetch_optional,
    first_length,
    flag,
    value_at,
)


def probe(fetch: Fetch) -> ProbeResult:
    status = value_at(fetch("/health"), "status")
    if status != "ok":
        raise BadProbeResponse(f"its health is {status!r}")
    models = read_model_list(fetch).models
    props = fetch_optional(fetch, "/props", version="")
    if len(models) == 1:  # A router lists several models; its /props describes none of them.
        context = value_at(props, "default_generation_settings", "n_ctx")
        vision = flag(value_at(props, "modalities", "vision"))
        # A model whose template has no tools ignores them without an error.
        tools = flag(value_at(props, "chat_template_caps", "supports_tools"))
        models = [
            msgspec.structs.replace(
                models[0],
                context_length=first_length(context, models[0].context_length),
                vision=models[0].vision if vision is None else vision,
                tools=tools,
            )
        ]
    slots = props.get("total_slots")  # The server queues requests beyond that.
    return ProbeResult(models, slots if isinstance(slots, int) and slots > 0 else None)


def recognizes(result: ProbeResult) -> bool:
    """Other servers have a `/health` too, but no slots in `/props`."""
    return result.capacity is not None


PROVIDER = Provider(
    name="llamacpp",
    self_hosted=True,
    probe=probe,
    recognizes=recognizes,
    own_api=True,
    dialects=DIALECTS,
    version=("/props", "build_info"),
    takes=frozenset({"top_k", "reasoning_effort"}),
)
