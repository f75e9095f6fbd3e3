"""llama.cpp's server: `/health` says whether the model is loaded, `/v1/models` which it is."""

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
