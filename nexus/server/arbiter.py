"""gunicorn's master, with workers that are replaced without being cut off and without a gap.

gunicorn gives a worker that it replaces `graceful_timeout` to end its requests, and waits for it; a
worker that recycles itself stops taking connections long before another one starts. Here a worker
that is to go leaves the count at once, so that its replacement starts. It serves until that one
does, and then drains for `[server] drain_timeout_seconds`: it takes no connections any more and
ends with its last request. TERM gives every worker, draining ones included, `graceful_timeout`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from gunicorn.arbiter import Arbiter

from nexus.fleet.load_table import SLOTS
from nexus.runtime import stderr
from nexus.server.worker_stage import DRAINING, RETIRING

_FROZEN_S = 5.0
"""The main loop turns once a second. After a longer gap this process was stopped, as a rule with its workers."""


def max_replaced(workers: int) -> int:
    """How many replaced workers may be alive beside so many that serve: twice as many, as far as slots go."""
    return max(1, min(2 * workers, SLOTS - 2 * workers - 1))


class Master(Arbiter):  # type: ignore[misc]
    """Workers that are to go are in `leaving`, where gunicorn neither counts nor ends them."""

    WORKERS: dict[int, Any]
    leaving: dict[int, Any]
    last_iteration_at: float
    spare_until: float

    @classmethod
    def take_over(cls, arbiter: Arbiter) -> None:
        """Turn gunicorn's own object into one of these; there is no setting for its class."""
        if getattr(arbiter.worker_class, "drains", False):
            arbiter.__class__ = cls
            arbiter.leaving = {}
            arbiter.last_iteration_at, arbiter.spare_until = time.monotonic(), 0.0

    # What starts and what ends

    def manage_workers(self) -> None:
        stderr.flush_pending()
        by_age = sorted(self.WORKERS, key=lambda pid: self.WORKERS[pid].age)
        for pid in by_age[: max(0, len(by_age) - self.num_workers)]:
            self._let_go(pid)
        for pid in self._worn():
            self._let_go(pid)
        super().manage_workers()
        self._drain()

    def _worn(self) -> Iterable[int]:
        """Workers that have served `max_requests`, as many as may be replaced now; the others can wait."""
        worn = [pid for pid, worker in self.WORKERS.items() if worker.stage.now == RETIRING]
        return worn[
            : max(0, min(self.num_workers, max_replaced(self.num_workers)) - len(self.leaving))
        ]

    def _let_go(self, pid: int) -> None:
        self.leaving[pid] = self.WORKERS.pop(pid)

    def _drain(self) -> None:
        """Have those that are to go stop serving, as far as others serve in their stead."""
        serving = [pid for pid, worker in self.leaving.items() if worker.stage.serves]
        others = sum(worker.stage.serves for worker in self.WORKERS.values())
        for pid in serving[: max(0, len(serving) + others - self.num_workers)]:
            self.log.info("Worker is replaced and drains (pid:%s)", pid)
            self.leaving[pid].stage.set(DRAINING)
        too_many = len(self.leaving) - max_replaced(self.num_workers)
        draining = [pid for pid, worker in self.leaving.items() if worker.stage.now == DRAINING]
        for pid in draining[: max(0, too_many)]:
            if not self.leaving[pid].told_to_end:
                self.leaving[pid].told_to_end = True
                self.log.warning("Too many replaced workers drain; ending the oldest (pid:%s)", pid)
                self.kill_worker(pid, signal.SIGTERM)

    def reload(self) -> None:
        """gunicorn starts new workers first, ends those that it knows of, and waits for them: it shall know of none."""
        for pid in sorted(self.WORKERS, key=lambda pid: self.WORKERS[pid].age):
            self._let_go(pid)
        super().reload()

    # What concerns every worker, also those that are to go

    def stop(self, graceful: bool = True) -> None:
        self._take_back()
        super().stop(graceful)

    def kill_workers(self, sig: int) -> None:
        for pid in list(self.leaving):
            self.kill_worker(pid, sig)
        super().kill_workers(sig)

    def reap_workers(self) -> None:
        with self._all_together():
            super().reap_workers()

    def murder_workers(self) -> None:
        now = time.monotonic()
        if now - self.last_iteration_at > _FROZEN_S:
            self.spare_until = now + self.timeout  # they could not show that they live either
        self.last_iteration_at = now
        if now < self.spare_until:
            return
        with self._all_together():
            super().murder_workers()

    def _take_back(self) -> None:
        self.WORKERS.update(self.leaving)
        self.leaving.clear()

    @contextmanager
    def _all_together(self) -> Iterator[None]:
        """For the time of the block, gunicorn sees every worker."""
        leaving = list(self.leaving)
        self._take_back()
        try:
            yield
        finally:
            for pid in leaving:
                if pid in self.WORKERS:
                    self._let_go(pid)

    # Signals

    def handle_usr2(self) -> None:
        self.log.warning(
            "USR2 is not supported: restart the service, or send HUP to replace the workers."
        )
