"""The state of the backends at one moment, by probes and by requests."""

from __future__ import annotations

import time

from nexus.admin.responses import BackendState
from nexus.fleet.records import Backend, Snapshot
from nexus.fleet.slot_lease import SlotLease
from nexus.fleet.status import status_of


def backend_states(snapshot: Snapshot, slot_lease: SlotLease) -> list[BackendState]:
    """The backends as operators see them, in the order of the configuration."""
    held, now_ns = slot_lease.held_slots(), time.monotonic_ns()

    def state(backend: Backend) -> BackendState:
        status = status_of(
            backend.column,
            "",
            slot_lease.circuits,
            slot_lease.table,
            config=snapshot.config,
            now_ns=now_ns,
        )
        return BackendState(
            id=backend.label,
            name=backend.name,
            url=backend.config.url,
            type=backend.config.type,
            zone=backend.config.zone or ("restricted" if backend.restricted else "open"),
            tier=backend.config.tier,
            priority=backend.config.priority,
            status=backend.status,
            since=backend.since,
            draining=backend.draining,
            origin=backend.origin,
            circuit=status.state,
            in_flight=slot_lease.table.pending_in(backend.column, held),
            capacity=backend.limit,
            latency_ms=backend.latency_ms,
            models=[model.name for model in backend.models],
            dialects=sorted(backend.spoken),
            error=backend.last_error,
        )

    return [state(backend) for backend in snapshot.backends]
