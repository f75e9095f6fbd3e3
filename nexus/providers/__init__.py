"""Kinds of backend, one module each, and their registry."""

from __future__ import annotations

from nexus.providers import (
    anthropic,
    exo,
    generic,
    google,
    llamacpp,
    lmstudio,
    ollama,
    openai,
    vllm,
)
from nexus.providers.base import Provider

__all__ = ["PROVIDERS", "Provider"]

PROVIDERS: dict[str, Provider] = {
    module.PROVIDER.name: module.PROVIDER
    for module in (ollama, vllm, llamacpp, exo, openai, lmstudio, generic, anthropic, google)
}
"""Value of `type` → the kind. The configuration accepts these values.

A program that embeds Nexus may add a kind before it imports `nexus.config`.
"""
