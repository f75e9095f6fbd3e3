"""What the admin endpoints read from the process that serves them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from nexus.admin.access import admin_token
from nexus.admin.live_updates import LiveUpdates
from nexus.config.admin_records import Admin
from nexus.fleet.history import History, RequestRecord
from nexus.fleet.problems import ProblemList, read_problems
from nexus.fleet.records import Snapshot
from nexus.fleet.run_directory import RunDirectory, Started
from nexus.fleet.slot_lease import SlotLease
from nexus.fleet.windows import RecentOutcomes, read_windows
from nexus.metrics.collector import Collector
from nexus.metrics.gauges import FILE as GAUGE_FILE
from nexus.metrics.recorder import Recorder
from nexus.metrics.recovery import recover_slot
from nexus.metrics.store import Store

Protected = Literal["dashboard", "metrics"]
Role = Literal["worker", "health_process"]


class GenerationContext:
    """A process's slot in one generation, and the metrics that it counts and reads there."""

    def __init__(
        self,
        slot_lease: SlotLease,
        *,
        snapshot: Callable[[], Snapshot | None],
        health_process_alive: Callable[[], bool],
    ) -> None:
        """Take over what the slot's last holder counted. Raises OSError."""
        recover_slot(slot_lease)
        self.slot_lease = slot_lease
        self.store = Store(slot_lease)
        self.recorder = Recorder(self.store, slot_lease)
        self.started = slot_lease.started() or Started.now(workers=1)
        self.collector = Collector(
            slot_lease,
            self.store.registry,
            started=self.started,
            snapshot=snapshot,
            health_process_alive=health_process_alive,
        )

    def uptime_s(self) -> float:
        return max(0.0, time.monotonic() - self.started.monotonic)

    def close(self) -> None:
        self.collector.close()
        self.recorder.close()
        self.store.close()
        self.slot_lease.release()


@dataclass(frozen=True, kw_only=True)
class AdminContext:
    """One process, as the admin endpoints see it. Generation and fleet change between two calls.

    Attributes:
        environ: Holds the operators' token.
        live: The viewers of the dashboard in this process.
        fleet_age_s: Returns the seconds since the last round of probes ended; None before the
            first.
        recent_outcomes: Returns the last hour and day of each backend, by its label value.
        run_dir_token: Returns the token in the run directory, which only its owner can read.
        flush_history: Writes what this process holds back of the requests that have ended.
    """

    role: Role
    environ: Mapping[str, str]
    live: LiveUpdates
    generation: Callable[[], GenerationContext]
    snapshot: Callable[[], Snapshot | None]
    health_process_alive: Callable[[], bool]
    fleet_age_s: Callable[[], float | None]
    recent_outcomes: Callable[[], Mapping[str, RecentOutcomes]]
    problems: Callable[[], ProblemList]
    run_dir_token: Callable[[], str | None]
    flush_history: Callable[[], None] = lambda: None

    def latest_requests(self, limit: int) -> list[RequestRecord]:
        """The requests of all processes that ended last, newest first."""
        self.flush_history()
        lease = self.generation().slot_lease
        return lease.history.latest(range(lease.table.rows), limit=limit)

    def token_for(self, what: Protected) -> str | None:
        """The token that this requires; None if it is open.

        Until a snapshot has been read, the configuration is unknown and everything is protected.
        """
        admin = self._admin()
        return admin_token(admin, self.environ) if admin is None or what in admin.protect else None

    def token_for_names(self) -> str | None:
        """The token for backends' names in open responses; None if nothing is protected."""
        admin = self._admin()
        return admin_token(admin, self.environ) if admin is None or admin.protect else None

    def _admin(self) -> Admin | None:
        snapshot = self.snapshot()
        return snapshot.config.admin if snapshot else None


def worker_context(
    run_dir: RunDirectory,
    generation: GenerationContext,
    *,
    snapshot: Callable[[], Snapshot | None],
    health_process_alive: Callable[[], bool],
    history: History,
    environ: Mapping[str, str],
) -> AdminContext:
    """A worker, which reads what the health process has written into the run directory."""
    path = run_dir.path

    def fleet_age_s() -> float | None:
        metrics = generation.slot_lease.metrics
        try:
            written_at = (metrics / GAUGE_FILE).stat().st_mtime if metrics else None
        except OSError:
            written_at = None
        return None if written_at is None else max(0.0, time.time() - written_at)

    return AdminContext(
        role="worker",
        environ=environ,
        live=LiveUpdates(path),
        generation=lambda: generation,
        snapshot=snapshot,
        health_process_alive=health_process_alive,
        fleet_age_s=fleet_age_s,
        recent_outcomes=lambda: read_windows(path),
        problems=lambda: read_problems(path, health_process_alive=health_process_alive()),
        run_dir_token=run_dir.own_token,
        flush_history=history.flush,
    )
