"""llama.cpp's server: `/health` says whether it is loaded, `/v1/models` what it has, `/props` what it can do."""

from __future__ import annotations

import msgspec

from nexus.providers import openai
from nexus.providers.probing import (
    BadProbeResponse,
    Fetch,
    ProbeResult,
    at,
    fetch_if_there,
    flag,
    length,
)


def probe(fetch: Fetch) -> ProbeResult:
    status = at(fetch("/health"), "status")
    if status != "ok":
        raise BadProbeResponse(f"its health is {status!r}")
    models = openai.list_models(fetch)
    props = fetch_if_there(fetch, "/props", version="")
    if len(models) == 1:  # of several, as its router has them, `/props` speaks of none
        (model,) = models
        vision = flag(at(props, "modalities", "vision"))
        models = [
            msgspec.structs.replace(
                model,
                context_length=length(
                    at(props, "default_generation_settings", "n_ctx"), model.context_length
                ),
                vision=model.vision if vision is None else vision,
                tools=flag(
                    at(props, "chat_template_caps", "supports_tools")
                ),  # without, it drops them silently
            )
        ]
    slots = props.get("total_slots")  # more requests than that would wait inside it
    return ProbeResult(models, slots if isinstance(slots, int) and slots > 0 else None)
