"""Kinds of backend, one module each, and their registry."""

from __future__ import annotations

from dataclasses import replace

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

_GEMINI = replace(google.PROVIDER, name="gemini")
PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        ollama.PROVIDER,
        vllm.PROVIDER,
        sglang.PROVIDER,
        llamacpp.PROVIDER,
        exo.PROVIDER,
        openai.PROVIDER,
        lmstudio.PROVIDER,
        generic.PROVIDER,
        anthropic.PROVIDER,
        azure.PROVIDER,
        bedrock.PROVIDER,
        google.PROVIDER,
        _GEMINI,
    )
}
"""Value of `type` → the kind. The configuration accepts these values.

A program that embeds Nexus may add a kind before it imports `nexus.config`.
"""
