"""llama.cpp's server: `/health` says whether the model is loaded, `/v1/models` which it is, `/props` how many slots."""

from __future__ import annotations

from nexus.backends import openai
from nexus.backends.probing import BadAnswer, Fetch
from nexus.fleet.records import Model


def probe(fetch: Fetch) -> list[Model]:
    answer = fetch("/health")
    status = answer.get("status") if isinstance(answer, dict) else None
    if status != "ok":
        raise BadAnswer(f"its health is {status!r}")
    return openai.probe(fetch)


def capacity(fetch: Fetch) -> int | None:
    """As many requests as it has slots; more would wait inside it. None where `/props` is switched off."""
    try:
        answer = fetch("/props", version="")
    except BadAnswer:
        return None
    slots = answer.get("total_slots") if isinstance(answer, dict) else None
    return slots if isinstance(slots, int) and slots > 0 else None
