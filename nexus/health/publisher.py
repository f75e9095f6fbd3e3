"""Publishing the fleet: a snapshot for the workers, gauges for scrapes, a line for systemd."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from nexus.fleet.records import Snapshot
from nexus.fleet.run_directory import RunDirectory
from nexus.fleet.snapshot import SnapshotReader, SnapshotWriter
from nexus.fleet.status import fleet_health
from nexus.health.fleet import Fleet
from nexus.health.generation import GenerationFollower
from nexus.metrics.gauges import write_fleet_gauges
from nexus.runtime.sd_notify import Notifier

log = logging.getLogger("nexus.health")


class Publisher:
    """Writes what the health process knows of the fleet into the run directory.

    Attributes:
        snapshot: The last one; at first that of an earlier health process, if there was one.
        generation: The generation whose gauges are written.
        reload_problems: Why the last reload was refused; empty if it was not.
        on_change: Called after a backend's status has changed, or a reload was refused.
    """

    def __init__(self, run_dir: RunDirectory, notifier: Notifier) -> None:
        self._writer = SnapshotWriter(run_dir.path)
        self._notifier = notifier
        self._probed_at = 0.0
        self._probed_monotonic: float | None = None
        self._loaded_at = time.time()
        self.reload_problems: tuple[str, ...] = ()
        self.on_change: Callable[[], None] = lambda: None
        self.snapshot: Snapshot | None = SnapshotReader(run_dir.path).read()
        self.generation = GenerationFollower(run_dir, lambda: self.snapshot)

    def publish(self, fleet: Fleet) -> bool:
        """Publish the fleet as it is; returns False if it cannot be written."""
        before = _states(self.snapshot)
        self.snapshot = fleet.snapshot(revision=self._writer.next_revision(), now=time.time())
        try:
            self._writer.publish(self.snapshot)
        except OSError as error:
            log.error("the fleet cannot be published", extra={"why": error})
            return False
        finally:
            self._write_gauges()
        self._notifier.status(self.status_line())
        if _states(self.snapshot) != before:
            self.on_change()
        return True

    def record_probe_round(self) -> None:
        """Remember that all backends were probed; the next snapshot is as of now."""
        self._probed_at, self._probed_monotonic = time.time(), time.monotonic()

    def record_reload(self, problems: tuple[str, ...] = ()) -> None:
        """Remember the result of a reload: why it was refused, or nothing."""
        self.reload_problems = problems
        if problems:
            self._write_gauges()
            self.on_change()
        else:
            self._loaded_at = time.time()

    def fleet_age_s(self) -> float | None:
        """Seconds since the last round of probes ended, whatever happens to the wall clock; None
        before the first."""
        probed = self._probed_monotonic
        return None if probed is None else time.monotonic() - probed

    def status_line(self) -> str:
        """The fleet in one line, for the service manager."""
        fleet = fleet_health(self.snapshot, 0)
        backends, models = fleet.backends, fleet.models.total
        line = (
            f"{backends.healthy} of {backends.total} backend{_s(backends.total)} healthy, "
            f"{models} model{_s(models)}"
        )
        return (
            f"{line}; the configuration file is wrong and not in use"
            if self.reload_problems
            else line
        )

    def _write_gauges(self) -> None:
        metrics = self.generation.context.slot_lease.metrics
        if self.snapshot is None or metrics is None:
            return
        try:
            write_fleet_gauges(
                metrics,
                self.snapshot,
                updated_at=self._probed_at,
                loaded_at=self._loaded_at,
                last_reload_good=not self.reload_problems,
            )
        except OSError as error:
            log.error("the fleet's gauges cannot be written", extra={"why": error})


def _states(snapshot: Snapshot | None) -> list[tuple[str, str, bool]]:
    backends = snapshot.backends if snapshot else ()
    return [(backend.name, backend.status, backend.draining) for backend in backends]


def _s(count: int) -> str:
    return "" if count == 1 else "s"
