"""Anthropic's API."""

from __future__ import annotations

from nexus.providers.base import Provider
from nexus.providers.model_list import read_entry
from nexus.providers.probing import Fetch, ProbeResult, objects


def probe(fetch: Fetch) -> ProbeResult:
    """The models that it lists, as many as a page holds."""
    entries = map(read_entry, objects(fetch("/v1/models?limit=1000"), "data"))
    return ProbeResult([model for model in entries if model is not None])


PROVIDER = Provider(
    name="anthropic",
    probe=probe,
    cloud=True,
    key_header="x-api-key",
    key_prefix="",
    headers=(("anthropic-version", "2023-06-01"),),
    dialects=frozenset({"anthropic"}),
)
