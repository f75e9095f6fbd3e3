"""What the admin endpoints read from the process that serves them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

from nexus.admin.access import admin_token
from nexus.admin.live_updates import LiveUpdates
from nexus.config.admin_records import Admin
from nexus.fleet.problems import ProblemList, read_problems
from nexus.fleet.records import Snapshot
from nexus.fleet.request_log import RequestLog, RequestRecord
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

    def latest_requests(self, limit: int) -> list[RequestRecord]:
        """The requests of all processes that ended last, newest first."""
        return self.slot_lease.request_log.latest(range(self.slot_lease.table.rows), limit=limit)

    def close(self) -> None:
        self.recorder.close()
        self.store.close()
        self.slot_lease.release()


class AdminContext(ABC):
    """One process, as the admin endpoints see it. Generation and fleet change between two calls.

    Attributes:
        environ: Holds the operators' token.
        live: The viewers of the dashboard in this process.
    """

    role: Role

    def __init__(self, environ: Mapping[str, str], live: LiveUpdates) -> None:
        self.environ = environ
        self.live = live

    @abstractmethod
    def generation(self) -> GenerationContext: ...

    @abstractmethod
    def snapshot(self) -> Snapshot | None: ...

    @abstractmethod
    def health_process_alive(self) -> bool: ...

    @abstractmethod
    def fleet_age_s(self) -> float | None:
        """Seconds since the last round of probes ended; None before the first."""

    @abstractmethod
    def recent_outcomes(self) -> Mapping[str, RecentOutcomes]:
        """The last hour and day of each backend, by its label value."""

    @abstractmethod
    def problems(self) -> ProblemList: ...

    @abstractmethod
    def run_dir_token(self) -> str | None:
        """The token in the run directory, which only its owner can read."""

    def latest_requests(self, limit: int) -> list[RequestRecord]:
        return self.generation().latest_requests(limit)

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


class WorkerContext(AdminContext):
    """A worker, which reads what the health process has written into the run directory."""

    role = "worker"

    def __init__(
        self,
        run_dir: RunDirectory,
        generation: GenerationContext,
        *,
        snapshot: Callable[[], Snapshot | None],
        health_process_alive: Callable[[], bool],
        request_log: RequestLog,
        environ: Mapping[str, str],
    ) -> None:
        super().__init__(environ, LiveUpdates(run_dir.path))
        self._run_dir = run_dir
        self._generation = generation
        self._snapshot = snapshot
        self._health_process_alive = health_process_alive
        self._request_log = request_log

    def generation(self) -> GenerationContext:
        return self._generation

    def snapshot(self) -> Snapshot | None:
        return self._snapshot()

    def health_process_alive(self) -> bool:
        return self._health_process_alive()

    def fleet_age_s(self) -> float | None:
        metrics = self._generation.slot_lease.metrics
        try:
            written_at = (metrics / GAUGE_FILE).stat().st_mtime if metrics else None
        except OSError:
            written_at = None
        return None if written_at is None else max(0.0, time.time() - written_at)

    def recent_outcomes(self) -> Mapping[str, RecentOutcomes]:
        return read_windows(self._run_dir.path)

    def problems(self) -> ProblemList:
        return read_problems(self._run_dir.path, health_process_alive=self._health_process_alive())

    def run_dir_token(self) -> str | None:
        return self._run_dir.own_token()

    def latest_requests(self, limit: int) -> list[RequestRecord]:
        self._request_log.flush()
        return super().latest_requests(limit)
