"""Listed names that stand for many models."""

from __future__ import annotations


def is_pattern(name: str) -> bool:
    """Whether a listed name stands for many, as LiteLLM's `provider/*` does."""
    return "*" in name
