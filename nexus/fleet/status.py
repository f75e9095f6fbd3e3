"""The status of backends as requests see it, and the health of the whole fleet."""

from __future__ import annotations

from typing import Literal

import msgspec

from nexus import __version__
from nexus.config import Config
from nexus.fleet.circuits import CircuitTable, State
from nexus.fleet.load_table import WINDOW_S, LoadTable
from nexus.fleet.records import Snapshot
from nexus.runtime.documents import Count, Document

_LEAST_SHARE = 0.05


class EndpointStatus(msgspec.Struct, frozen=True, gc=False):
    """What requests know of a backend and one of its models.

    Attributes:
        state: The state of its circuit.
        ready_in_s: Seconds until an open circuit lets a request through.
        busy_s: Seconds for which the backend asked not to be sent requests.
        share: Part of its usual traffic that it gets; below 1 while it recovers (slow start).
        failures: Failures in the last window.
    """

    state: State = "closed"
    ready_in_s: float = 0.0
    busy_s: float = 0.0
    share: float = 1.0
    failures: int = 0


CLEAR = EndpointStatus()
"""The status of a backend about which nothing is known. Routing compares it by identity."""

FleetStatus = Literal["healthy", "degraded", "unhealthy"]


class BackendCounts(Document, frozen=True):
    total: Count
    healthy: Count
    unhealthy: Count


class ModelCounts(Document, frozen=True):
    total: Count


class Health(Document, frozen=True):
    """`/health`: the fleet is healthy if all of its backends are, and unhealthy if none is."""

    status: FleetStatus
    version: str
    uptime_seconds: Count
    backends: BackendCounts
    models: ModelCounts


def status_of(
    column: int, model: str, circuits: CircuitTable, load: LoadTable, *, config: Config, now_ns: int
) -> EndpointStatus:
    """Return the status of the backend in `column` for requests for `model`."""
    if not circuits.dirty[column]:
        return CLEAR
    circuit = circuits.read(column)
    busy_until = circuit.busy_until
    if circuit.models_until > now_ns:
        busy_until = max(busy_until, circuits.model_busy_until(column, model))
    failures = 0
    if circuit.failed > circuit.recovered and now_ns - circuit.failed < WINDOW_S * 1e9:
        failures = load.outcomes(column, now_ns, since_ns=circuit.recovered)[1]
    settings = config.circuit_breaker
    share = 1.0
    if circuit.consecutive_opens:
        share = share_after((now_ns - circuit.recovered) / 1e9, settings.slow_start_seconds)
    return EndpointStatus(
        state=circuit.state(now_ns) if settings.enabled else "closed",
        ready_in_s=max(0.0, (circuit.open_until - now_ns) / 1e9),
        busy_s=max(0.0, (busy_until - now_ns) / 1e9),
        share=share,
        failures=failures,
    )


def share_after(recovered_for_s: float, slow_start_s: float) -> float:
    """Return the share of its usual traffic that a backend gets this long after it recovered."""
    return min(1.0, max(_LEAST_SHARE, recovered_for_s / slow_start_s))


def fleet_health(snapshot: Snapshot | None, uptime_s: float) -> Health:
    """Return the document that `/health` serves."""
    backends = snapshot.backends if snapshot else ()
    healthy = [backend for backend in backends if backend.status == "healthy"]
    status: FleetStatus = "degraded"
    if not healthy:
        status = "unhealthy"
    elif len(healthy) == len(backends):
        status = "healthy"
    models = {model.name for backend in healthy for model in backend.models}
    return Health(
        status=status,
        version=__version__,
        uptime_seconds=int(uptime_s),
        backends=BackendCounts(
            total=len(backends), healthy=len(healthy), unhealthy=len(backends) - len(healthy)
        ),
        models=ModelCounts(total=len(models)),
    )
