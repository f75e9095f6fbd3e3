"""Kinds of backend: how each is probed, how its models are read, how a request is addressed to it.

A kind is a module with `probe(fetch) -> list[Model]`, and `capacity(fetch) -> int | None` where it tells how many
requests it works on at once; it does no I/O itself but through `fetch`.
"""

from __future__ import annotations

from collections.abc import Callable

from nexus.backends import llamacpp, ollama, openai, vllm
from nexus.backends.probing import BadAnswer, Fetch
from nexus.fleet.records import Model

__all__ = ["BadAnswer", "Fetch", "capacity_of", "probe_of"]

Probe = Callable[[Fetch], list[Model]]

_PROBES: dict[str, Probe] = {
    "ollama": ollama.probe,
    "vllm": vllm.probe,
    "llamacpp": llamacpp.probe,
    "lmstudio": openai.probe,
    "exo": openai.probe,
    "openai": openai.probe,
    "generic": openai.probe,
}


def probe_of(kind: str) -> Probe:
    """How a backend of this kind is probed; KeyError for a kind that is not spoken."""
    return _PROBES[kind]


_CAPACITIES: dict[str, Callable[[Fetch], int | None]] = {"llamacpp": llamacpp.capacity}


def capacity_of(kind: str) -> Callable[[Fetch], int | None]:
    """How a backend of this kind is asked for its capacity; most tell none."""
    return _CAPACITIES.get(kind, lambda _: None)
