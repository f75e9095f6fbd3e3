"""Anthropic's API."""

from __future__ import annotations

import msgspec

from nexus.providers.base import Provider
from nexus.providers.model_list import read_entry
from nexus.providers.probing import Fetch, ProbeResult, first_length, objects


def probe(fetch: Fetch) -> ProbeResult:
    """The models that it lists, as many as a page holds."""
    models = []
    for entry in objects(fetch("/v1/models?limit=1000"), "data"):
        if (model := read_entry(entry)) is not None:
            most = first_length(entry.get("max_tokens"))
            models.append(msgspec.structs.replace(model, max_output_tokens=most))
    return ProbeResult(models)


PROVIDER = Provider(
    name="anthropic",
    probe=probe,
    cloud=True,
    key_header="x-api-key",
    key_prefix="",
    headers=(("anthropic-version", "2023-06-01"),),
    dialects=frozenset({"anthropic"}),
)
