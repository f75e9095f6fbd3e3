"""The backends, each asked as a probe asks it, from here."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

from nexus.cli.doctor.findings import Finding, fail, ok, warn
from nexus.cli.output import counted, milliseconds
from nexus.config import BackendConfig
from nexus.config.records import NOT_SPOKEN

_TIMEOUT_S = 5.0
_AT_ONCE = 16


def backends(configured: Sequence[BackendConfig], environ: Mapping[str, str]) -> list[Finding]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda backend: _backend(backend, environ), configured))


def _backend(backend: BackendConfig, environ: Mapping[str, str]) -> Finding:
    """Its name looked up, its port tried, then a whole probe; the first thing that fails is what is told."""
    from nexus.health.prober import Prober

    area, parts = f"backend {backend.name}", urlsplit(backend.url)
    if backend.type in NOT_SPOKEN:
        return warn(
            area, f"Nexus does not speak {backend.type}'s protocol yet.", "take it out, or leave it: it is not used"
        )
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), timeout=_TIMEOUT_S).close()
    except socket.gaierror as error:
        return fail(
            area, f"The name {host} is not known ({error.strerror}).", f"mend url = {backend.url!r}, or the DNS"
        )
    except OSError as error:
        why = error.strerror or "no answer in time"
        return fail(area, f"Nobody listens at {host}:{port} ({why}).", "start it, open the way to it, or mend its url")
    with closing(Prober(backend, environ)) as prober:
        result = prober.probe(_TIMEOUT_S)
    if not result.success:
        refused = any(status in (result.error or "") for status in ("401", "403"))
        key = f"${backend.api_key_env}" if backend.api_key_env else "its key (it has no api_key_env)"
        mend = (
            f"it refuses our key: check {key}"
            if refused
            else f"look at its log; is it really of type {backend.type!r}?"
        )
        return fail(area, f"It listens, and its probe fails: {result.error}.", mend)
    if not result.models:
        return warn(area, "It is well, and has no model.", "load one there")
    took = milliseconds((result.latency_s or 0) * 1000)
    return ok(area, f"{counted(len(result.models), 'model')}, answered in {took}")
