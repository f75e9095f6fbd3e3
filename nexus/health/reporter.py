"""What the health process writes every second for people: problems, outcomes, the dashboard."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import gevent

from nexus.admin.context import GenerationContext
from nexus.admin.operations import STALE_ROUNDS
from nexus.admin.responses import BackendState
from nexus.fleet.dashboard_state import write_state
from nexus.fleet.problems import ProblemList, write_problems
from nexus.fleet.windows import RecentOutcomes, write_windows
from nexus.health.backend_states import backend_states
from nexus.health.dashboard import Dashboard
from nexus.health.problems import Facts, find_problems
from nexus.health.publisher import Publisher
from nexus.health.windows import Windows
from nexus.metrics import cost_families, families, gateway_families
from nexus.metrics.collector import MetricsSnapshot
from nexus.metrics.family import Family

log = logging.getLogger("nexus.health")

_INTERVAL_S = 1.0
_WINDOWS_INTERVAL_S = 5.0
_RETRY_S = 5.0
_WORKERS_REPLACED_S = 5
"""A worker counts as missing if it has not been replaced within this time."""


class Reporter:
    """Collects the metrics once a second and writes what follows from them.

    Attributes:
        outcomes: The last hour and day of each backend, by its label value.
        problems: What is wrong with the gateway.
    """

    def __init__(
        self, run_dir: Path, publisher: Publisher, *, ledger_failing: Callable[[], bool]
    ) -> None:
        self._run_dir = run_dir
        self._ledger_failing = ledger_failing
        self._publisher = publisher
        self._dashboard = Dashboard()
        self._metrics: MetricsSnapshot | None = None
        self._follow(publisher.generation.context)
        self.outcomes: Mapping[str, RecentOutcomes] = {}
        self.problems = ProblemList(checked_at=0.0, problems=[])

    def run(self) -> None:
        """Report without end."""
        while True:
            try:
                self._report()
            except OSError as error:
                log.error("the gateway's state cannot be written", extra={"why": error})
                gevent.sleep(_RETRY_S)
            gevent.sleep(_INTERVAL_S)

    def update_problems(self) -> None:
        """Write the list of problems for a fleet that has changed, with the last metrics."""
        if self._metrics is None or self._publisher.snapshot is None:
            return
        slot_lease = self._publisher.generation.context.slot_lease
        slot_lease.restore_row()
        backends = backend_states(self._publisher.snapshot, slot_lease)
        try:
            self._write_problems(self._metrics, backends)
        except OSError as error:
            log.error("the list of problems cannot be written", extra={"why": error})

    def _follow(self, generation: GenerationContext) -> None:
        """Drop the state of another generation."""
        self._generation = generation
        self._windows = Windows(started=generation.started.monotonic)
        self._windows_due = 0.0
        self._workers: deque[int] = deque(maxlen=_WORKERS_REPLACED_S)

    def _report(self) -> None:
        generation = self._publisher.generation.context
        if generation is not self._generation:
            self._follow(generation)
        # To read a table that somebody has truncated would end the process (SIGBUS).
        generation.slot_lease.restore_row()
        snapshot, metrics = self._publisher.snapshot, generation.collector.collect()
        now, monotonic = time.time(), time.monotonic()
        if monotonic >= self._windows_due:
            self._windows_due = monotonic + _WINDOWS_INTERVAL_S
            self.outcomes = self._windows.sample(metrics, now=monotonic)
            write_windows(self._run_dir, dict(self.outcomes))
        if snapshot is None:
            return
        self._metrics = metrics
        self._workers.append(int(metrics.total(gateway_families.WORKERS)))
        backends = backend_states(snapshot, generation.slot_lease)
        self._write_problems(metrics, backends)
        if snapshot.config.dashboard.enabled:
            tick, backlog = self._dashboard.sample(
                metrics,
                snapshot,
                generation,
                backends=backends,
                problems=self.problems.problems,
                now=now,
                monotonic=monotonic,
            )
            write_state(self._run_dir, tick, backlog)

    def _write_problems(self, metrics: MetricsSnapshot, backends: list[BackendState]) -> None:
        problems = find_problems(self._facts(metrics, backends))
        self.problems = ProblemList(checked_at=time.time(), problems=problems)
        write_problems(self._run_dir, self.problems)

    def _facts(self, metrics: MetricsSnapshot, backends: list[BackendState]) -> Facts:
        assert self._publisher.snapshot is not None
        probing = self._publisher.snapshot.config.health_check
        outcomes = self.outcomes.items()
        return Facts(
            backends=backends,
            troubles={label: one.trouble for label, one in outcomes if one.trouble},
            uptime_s=self._generation.uptime_s(),
            workers=max(self._workers, default=0),
            workers_configured=self._generation.started.workers,
            workers_silent=int(metrics.total(gateway_families.WORKERS_SILENT)),
            fleet_age_s=self._publisher.fleet_age_s(),
            fleet_age_limit_s=STALE_ROUNDS * probing.interval_seconds if probing.enabled else None,
            reload_problems=self._publisher.reload_problems,
            run_directory_usable=bool(metrics.total(gateway_families.RUN_DIRECTORY)),
            imbalance=metrics.total(gateway_families.IMBALANCE),
            write_errors=int(metrics.total(gateway_families.WRITE_ERRORS)),
            damaged_files=int(metrics.total(gateway_families.DAMAGED_FILES)),
            nearly_spent=_nearly_spent(metrics),
            ledger_failing=self._ledger_failing(),
            labels_over=int(metrics.total(families.LABELS_OVERFLOWED)),
        )


def _nearly_spent(metrics: MetricsSnapshot) -> list[str]:
    """The budgets that have reached the share that warns, each with its subject."""

    def amounts(family: Family) -> dict[tuple[str, str], float]:
        samples = metrics.samples(family)
        return {(labels["budget"], labels["subject"]): value for labels, value in samples}

    warns_at = amounts(cost_families.BUDGET_WARN)
    return [
        f"{budget!r} of {subject}" if subject else repr(budget)
        for (budget, subject), spent in amounts(cost_families.BUDGET_SPENT).items()
        if spent >= warns_at[budget, subject]
    ]
