"""Finding out what kind of server a backend is, when an operator adds one without a type."""

from __future__ import annotations

from collections.abc import Mapping

import gevent
from msgspec.structs import replace

from nexus.config import BackendConfig
from nexus.config.records import BackendType
from nexus.health.prober import Prober, Result


def detect(backend: BackendConfig, environ: Mapping[str, str], *, timeout_s: float) -> BackendType:
    """The first kind, of those that can be told apart, whose own paths the backend answers; else `generic`.

    It probes the backend as each of these kinds at once, and waits at most `timeout_s`.
    """

    def probe(kind: BackendType) -> Result:
        prober = Prober(replace(backend, type=kind), environ)
        try:
            found = prober.probe(timeout_s)
            # llama.cpp is known by its slots, which are a detail.
            return (prober.more_details(timeout_s) or found) if kind == "llamacpp" else found
        finally:
            prober.close()

    kinds: tuple[BackendType, ...] = ("ollama", "llamacpp", "vllm")
    probes = [gevent.spawn(probe, kind) for kind in kinds]
    ollama, llamacpp, vllm = (each.get() for each in probes)
    if ollama.success:
        return "ollama"
    if (
        llamacpp.success and llamacpp.capacity is not None
    ):  # others have a /health too, but no slots in /props
        return "llamacpp"
    if vllm.models and all(
        model.context_length for model in vllm.models
    ):  # only vLLM's list has max_model_len
        return "vllm"
    return "generic"
