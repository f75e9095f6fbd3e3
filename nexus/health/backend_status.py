"""How the backends are at this moment, for operators: what probes found, and what requests see of them."""

from __future__ import annotations

import time
from typing import Any

from nexus.fleet.records import Backend, Snapshot
from nexus.fleet.slot_lease import SlotLease
from nexus.fleet.status import fleet_health, status_of


def backend_states(snapshot: Snapshot, slot_lease: SlotLease) -> list[dict[str, Any]]:
    """One table for each backend, in the order of the configuration."""
    held, now_ns = slot_lease.held_slots(), time.monotonic_ns()

    def state(backend: Backend) -> dict[str, Any]:
        status = status_of(
            backend.column,
            "",
            slot_lease.circuits,
            slot_lease.table,
            config=snapshot.config,
            now_ns=now_ns,
        )
        return {
            "id": backend.label,
            "name": backend.name,
            "url": backend.config.url,
            "type": backend.config.type,
            "zone": backend.config.zone or ("restricted" if backend.restricted else "open"),
            "tier": backend.config.tier,
            "priority": backend.config.priority,
            "status": backend.status,
            "since": backend.since,
            "draining": backend.draining,
            "origin": backend.origin,
            "circuit": status.state,
            "in_flight": slot_lease.table.pending_in(backend.column, held),
            "capacity": backend.limit,
            "latency_ms": backend.latency_ms,
            "models": [model.name for model in backend.models],
            "error": backend.last_error,
        }

    return [state(backend) for backend in snapshot.backends]


def status_line(snapshot: Snapshot | None, *, last_reload_good: bool) -> str:
    """The fleet in one line, for the service manager."""
    fleet = fleet_health(snapshot, 0)
    backends, models = fleet["backends"], fleet["models"]["total"]
    line = (
        f"{backends['healthy']} of {backends['total']} backend{'' if backends['total'] == 1 else 's'} healthy, "
        f"{models} model{'' if models == 1 else 's'}"
    )
    return (
        line
        if last_reload_good
        else f"{line}; the configuration file is wrong and was not taken up"
    )
