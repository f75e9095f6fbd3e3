"""gunicorn's master, which replaces workers without cutting off requests and without a gap.

gunicorn gives a replaced worker `graceful_timeout` to end its requests and waits for it. A worker
that recycles itself stops accepting connections long before another one starts. This master removes
a worker that is to be replaced from gunicorn's table at once, so that its replacement starts. The
old worker serves until the new one does. Then it drains for `[server] drain_timeout_seconds`: it
accepts no connections and ends after its last request. TERM gives every worker, draining ones
included, `graceful_timeout`.

Private parts of gunicorn used here, which `tests/test_private_parts.py` names: `WORKERS`, and the
methods of its arbiter that are overridden or called.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gunicorn.arbiter import Arbiter

from nexus.fleet.load_table import SLOTS
from nexus.runtime import stderr
from nexus.server.worker_stage import DRAINING, ENDING, RETIRING

_FROZEN_S = 5.0
"""The main loop iterates once a second. After a longer gap this process was frozen, and most likely
its workers with it."""


def max_replaced(workers: int) -> int:
    """How many replaced workers may be alive: twice as many as serve, if slots allow."""
    return max(1, min(2 * workers, SLOTS - 2 * workers - 1))


class Master(Arbiter):  # type: ignore[misc]
    """Keeps replaced workers apart, so that gunicorn neither counts nor ends them.

    Attributes:
        replaced: Workers that have a replacement or wait for one, by pid.
        last_iteration_at: When the main loop last iterated, on the monotonic clock.
        spare_until: Until then no worker is killed for its silence.
    """

    WORKERS: dict[int, Any]
    replaced: dict[int, Any]
    last_iteration_at: float
    spare_until: float

    @classmethod
    def install(cls, arbiter: Arbiter) -> None:
        """Change the class of gunicorn's own object; no setting names it."""
        if getattr(arbiter.worker_class, "supports_draining", False):
            arbiter.__class__ = cls
            arbiter.replaced = {}
            arbiter.last_iteration_at, arbiter.spare_until = time.monotonic(), 0.0

    # Replacing workers

    def manage_workers(self) -> None:
        stderr.flush_pending()
        by_age = sorted(self.WORKERS, key=lambda pid: self.WORKERS[pid].age)
        for pid in [*by_age[: max(0, len(by_age) - self.num_workers)], *self._retiring()]:
            self._replace(pid)
        super().manage_workers()
        self._drain_replaced()
        self._end_surplus()

    def _retiring(self) -> list[int]:
        """Workers that have served `max_requests`, as many as may be replaced now."""
        retiring = [pid for pid, worker in self.WORKERS.items() if worker.stage.now == RETIRING]
        most = min(self.num_workers, max_replaced(self.num_workers))
        return retiring[: max(0, most - len(self.replaced))]

    def _replace(self, pid: int) -> None:
        self.replaced[pid] = self.WORKERS.pop(pid)

    def _drain_replaced(self) -> None:
        """Drain replaced workers that still serve, once enough others serve."""
        serving = [pid for pid, worker in self.replaced.items() if worker.stage.serves]
        others = sum(worker.stage.serves for worker in self.WORKERS.values())
        for pid in serving[: max(0, len(serving) + others - self.num_workers)]:
            self.log.info("Worker is replaced and drains (pid:%s)", pid)
            self.replaced[pid].stage.set(DRAINING)

    def _end_surplus(self) -> None:
        """End the oldest draining workers if too many are alive."""
        surplus = len(self.replaced) - max_replaced(self.num_workers)
        draining = [pid for pid, worker in self.replaced.items() if worker.stage.now == DRAINING]
        for pid in draining[: max(0, surplus)]:
            if not self.replaced[pid].term_sent:
                self.replaced[pid].term_sent = True
                self.log.warning("Too many replaced workers drain; ending the oldest (pid:%s)", pid)
                self.kill_worker(pid, signal.SIGTERM)

    def reload(self) -> None:
        # gunicorn starts new workers first, ends those in its table, and waits for them. The table
        # must be empty.
        for pid in sorted(self.WORKERS, key=lambda pid: self.WORKERS[pid].age):
            self._replace(pid)
        super().reload()

    # Every worker, replaced ones included

    def spawn_worker(self) -> int:
        """Start a worker.

        Signals that end it wait until it has its own handlers. The master's, which it inherits,
        would swallow them: it would serve on, and be killed in the middle of requests.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            return int(super().spawn_worker())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stop(self, graceful: bool = True) -> None:
        self._restore()
        super().stop(graceful)

    def kill_workers(self, sig: int) -> None:
        for pid in list(self.replaced):
            self.kill_worker(pid, sig)
        super().kill_workers(sig)

    def reap_workers(self) -> None:
        with self._all_workers():
            super().reap_workers()

    def murder_workers(self) -> None:
        now = time.monotonic()
        if now - self.last_iteration_at > _FROZEN_S:
            self.spare_until = now + self.timeout  # frozen workers could send no heartbeat either
        self.last_iteration_at = now
        if now < self.spare_until:
            return
        with self._all_workers():
            super().murder_workers()

    def _restore(self) -> None:
        self.WORKERS.update(self.replaced)
        self.replaced.clear()

    @contextmanager
    def _all_workers(self) -> Iterator[None]:
        """Show gunicorn every worker within the block."""
        replaced = list(self.replaced)
        self._restore()
        try:
            yield
        finally:
            for pid in replaced:
                if pid in self.WORKERS:
                    self._replace(pid)

    # Signals

    def handle_usr2(self) -> None:
        self.log.warning(
            "USR2 is not supported: restart the service, or send HUP to replace the workers."
        )
