"""The backend of an endpoint whose requests all go to one, as the configuration says."""

from __future__ import annotations

from nexus.errors import RequestFailed
from nexus.fleet.records import Backend, Snapshot
from nexus.proxy.endpoint_table import Endpoint
from nexus.proxy.exchange import Exchange


def check_backend(exchange: Exchange) -> None:
    """Refuse a request that has no backend, before its body is read."""
    pinned_backend(exchange.endpoint, exchange.engine.view().snapshot)


def pinned_backend(endpoint: Endpoint, snapshot: Snapshot) -> Backend:
    """The backend of an endpoint that has only one. Raises `RequestFailed`."""
    key = endpoint.backend_key
    name = getattr(snapshot.config.endpoints, key) if key else endpoint.backend
    if name is None:
        raise RequestFailed(
            "endpoint_not_configured",
            f"{endpoint.path} has no backend here; the operators name one in [endpoints] {key}.",
        )
    backend = next((one for one in snapshot.backends if one.name == name), None)
    if backend is None or backend.status != "healthy":
        state = "not in the fleet" if backend is None else "not healthy"
        raise RequestFailed(
            "no_healthy_backend",
            f"Backend {name}, which serves {endpoint.path}, is {state}; no other can.",
            headers={"retry-after": "5"},
        )
    return backend
