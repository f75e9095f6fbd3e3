"""Whatever speaks OpenAI's protocol and says no more than that: OpenAI itself, LM Studio, exo, others."""

from __future__ import annotations

from nexus.backends.guessing import guess
from nexus.backends.probing import Fetch, items, text
from nexus.fleet.records import Model


def probe(fetch: Fetch) -> list[Model]:
    """`/v1/models` lists names only."""
    names = [text(item, "id") for item in items(fetch("/v1/models"), "data")]
    return [guess(name) for name in names if name]
