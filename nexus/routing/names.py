"""Names that a kind of backend takes for the ones that it lists."""

from __future__ import annotations

from fnmatch import fnmatchcase


def ollama_form(name: str) -> str:
    """The same for all names that are one model to Ollama: any case, with and without registry and `:latest`."""
    form = name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return form if ":" in form.rpartition("/")[2] else f"{form}:latest"


def is_pattern(name: str) -> bool:
    """Whether a listed name stands for many, as LiteLLM's `provider/*` does."""
    return "*" in name


def matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern)
