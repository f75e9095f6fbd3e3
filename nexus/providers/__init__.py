"""Kinds of backend, one module each, and their registry."""

from __future__ import annotations

from nexus.providers import (
    anthropic,
    azure,
    bedrock,
    exo,
    generic,
    google,
    llamacpp,
    lmstudio,
    ollama,
    openai,
    sglang,
    vllm,
)
from nexus.providers.base import Provider

__all__ = ["PROVIDERS", "Provider"]

PROVIDERS: dict[str, Provider] = {
    module.PROVIDER.name: module.PROVIDER
    for module in (
        ollama,
        vllm,
        sglang,
        llamacpp,
        exo,
        openai,
        lmstudio,
        generic,
        anthropic,
        azure,
        bedrock,
        google,
    )
}
"""Value of `type` → the kind. The configuration accepts these values.

A program that embeds Nexus may add a kind before it imports `nexus.config`.
"""
