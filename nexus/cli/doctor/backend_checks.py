"""Probes of every configured backend from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from nexus.cli.doctor.findings import Finding, fail, ok, warn
from nexus.cli.output import counted, milliseconds
from nexus.config import BackendConfig
from nexus.fleet.records import spoken as spoken_dialects

_TIMEOUT_S = 5.0
_AT_ONCE = 16


def backends(configured: Sequence[BackendConfig], environ: Mapping[str, str]) -> list[Finding]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda backend: _backend(backend, environ), configured))


def _backend(backend: BackendConfig, environ: Mapping[str, str]) -> Finding:
    """Probe one backend as the health process does."""
    from nexus.health.prober import Prober

    area = f"backend {backend.name}"
    with closing(Prober(backend, environ)) as prober:
        result = prober.probe(_TIMEOUT_S)
        spoken = spoken_dialects(backend, None)
        if result.success:
            spoken = prober.ask_dialects(spoken, _TIMEOUT_S) or spoken
    if result.error is not None:
        what, _, fix = result.error.partition("; ")
        key = (
            f"${backend.api_key_env}" if backend.api_key_env else "its key (it has no api_key_env)"
        )
        if any(f"responded {status}" in what for status in (401, 403)):
            fix = f"it refuses our key: check {key}"
        return fail(
            area,
            f"Its probe fails: {what}.",
            fix or f"check its log; is it really of type {backend.type!r}?",
        )
    if not result.models:
        return warn(area, "It responds, but has no model.", "load a model there")
    took = milliseconds((result.latency_s or 0) * 1000)
    models, apis = counted(len(result.models), "model"), ", ".join(sorted(spoken))
    return ok(area, f"{models}, speaks {apis}, responded in {took}")
