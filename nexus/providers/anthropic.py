"""Anthropic's API."""

from nexus.providers.base import Provider

PROVIDER = Provider(
    name="anthropic",
    cloud=True,
    key_header="x-api-key",
    key_prefix="",
    headers=(("anthropic-version", "2023-06-01"),),
    dialects=frozenset({"anthropic"}),
    unsupported="its protocol is not supported yet",
)
