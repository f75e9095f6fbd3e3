"""Finds out what kind of server a backend is, when an operator adds one without a type."""

from __future__ import annotations

from collections.abc import Mapping

import gevent
from msgspec.structs import replace

from nexus.config import BackendConfig
from nexus.config.fields import BackendType
from nexus.health.prober import ProbeOutcome, Prober
from nexus.providers import PROVIDERS, Provider
from nexus.providers.probing import ProbeResult


def detect_kind(
    backend: BackendConfig, environ: Mapping[str, str], *, timeout_s: float
) -> BackendType:
    """The first registered kind that recognizes the server by its probe; else `generic`.

    All kinds are probed at the same time. A probe takes at most `timeout_s`.
    """
    candidates = [kind for kind in PROVIDERS.values() if kind.recognizes]
    probes = [gevent.spawn(_is_of_kind, kind, backend, environ, timeout_s) for kind in candidates]
    recognized = [kind.name for kind, probe in zip(candidates, probes, strict=True) if probe.get()]
    return recognized[0] if recognized else "generic"


def _is_of_kind(
    kind: Provider, backend: BackendConfig, environ: Mapping[str, str], timeout_s: float
) -> bool:
    recognizes = kind.recognizes
    assert recognizes is not None

    def recognized(result: ProbeOutcome | None) -> bool:
        return (
            result is not None
            and result.models is not None
            and recognizes(ProbeResult(list(result.models), result.capacity))
        )

    prober = Prober(replace(backend, type=kind.name), environ)
    try:
        result = prober.probe(timeout_s)
        # A kind may be recognized by a detail only, such as the slots of llama.cpp.
        return result.success and (recognized(result) or recognized(prober.more_details(timeout_s)))
    finally:
        prober.close()
