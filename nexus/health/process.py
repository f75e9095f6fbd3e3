"""The health process: starts its parts, runs them, and ends if one of them fails."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping

import gevent
import gevent.event

from nexus.admin.context import AdminContext
from nexus.admin.live_updates import LiveUpdates
from nexus.config import LoadedConfig
from nexus.fleet.label_requests import LabelRequests
from nexus.fleet.run_directory import RunDirectory
from nexus.fleet.slot_lease import NoFreeSlotError
from nexus.fleet.state_directory import StateDirectory
from nexus.health.accounts import AccountKeeper
from nexus.health.backend_admin import HealthBackendAdmin
from nexus.health.budget_admin import HealthBudgetAdmin
from nexus.health.change_files import ChangeFiles
from nexus.health.key_admin import HealthKeyAdmin
from nexus.health.monitor import FleetMonitor
from nexus.health.operations_port import operations_app, serve_operations
from nexus.health.publisher import Publisher
from nexus.health.reload import Reloader
from nexus.health.reporter import Reporter
from nexus.metrics.recovery import recover_abandoned
from nexus.runtime import stderr
from nexus.runtime.sd_notify import Notifier

log = logging.getLogger("nexus.health")

_POLL_INTERVAL_S = 0.25
"""Short enough that a killed worker's requests leave the gauges within a second."""
_RETRY_S = 5.0
_FIRST_ROUND_S = 10.0
"""Limit for the first round before READY=1: a backend that hangs must not hold up the start."""


class HealthProcess:
    """Runs until `stop()`; everything happens in the greenlets of one thread."""

    def __init__(
        self,
        loaded: LoadedConfig,
        run_dir: RunDirectory,
        environ: Mapping[str, str] = os.environ,
        *,
        notifier: Notifier | None = None,
    ) -> None:
        """Join the gateway and publish its fleet.

        Raises `ConfigError`, OSError and `NoFreeSlotError`.
        """
        self._run_dir = run_dir
        self._environ = environ
        self._notifier = notifier or Notifier(None)
        self._stopping = gevent.event.Event()
        self._exit_status = 0
        self._label_requests = LabelRequests(run_dir.path)
        self._publisher = Publisher(run_dir, self._notifier)
        state_dir = StateDirectory.of(loaded.config, environ)
        self._accounts = AccountKeeper(self._publisher, state_dir)
        self._changes = ChangeFiles(
            loaded.path,
            environ,
            session_dir=self._publisher.generation.path,
            state_dir=state_dir,
        )
        self._monitor = FleetMonitor(self._publisher, environ, self._changes.overlay(loaded.config))
        self._reporter = Reporter(
            run_dir.path, self._publisher, ledger_failing=lambda: self._accounts.failing
        )
        self._publisher.on_change = self._reporter.update_problems
        self._reloader = Reloader(
            loaded,
            environ,
            run_dir=run_dir,
            monitor=self._monitor,
            publisher=self._publisher,
            changes=self._changes,
            notifier=self._notifier,
        )
        self._admin = HealthBackendAdmin(
            run_dir,
            monitor=self._monitor,
            publisher=self._publisher,
            changes=self._changes,
            environ=environ,
        )
        self._keys = HealthKeyAdmin(self._monitor, self._changes)
        self._budgets = HealthBudgetAdmin(self._monitor, self._changes, publisher=self._publisher)
        self._monitor.adopt(self._monitor.fleet)

    def run(self) -> int:
        """Probe, publish and serve until `stop()`; returns the exit status, 1 if a part failed."""
        gevent.signal_handler(signal.SIGTERM, self.stop)
        gevent.signal_handler(signal.SIGINT, self.stop)
        gevent.signal_handler(signal.SIGHUP, self._reloader.reload)
        parts: tuple[Callable[[], object], ...] = (
            self._monitor.rounds.run,
            self._reporter.run,
            self._accounts.run,
            self._poll,
            self._serve,
            self._notify_when_ready,
            lambda: self._notifier.feed_watchdog(gevent.sleep),
        )
        greenlets = [gevent.spawn(part) for part in parts]
        for greenlet in greenlets:
            greenlet.link_exception(self._fail)
        log.info(
            "health process ready",
            extra={"pid": os.getpid(), "backends": len(self._monitor.fleet.backends)},
        )
        self._stopping.wait()
        self._notifier.stopping()
        gevent.killall(greenlets)
        self._accounts.close()
        self._publisher.generation.close()
        log.info("health process stopped", extra={"pid": os.getpid()})
        return self._exit_status

    def stop(self) -> None:
        self._stopping.set()

    def _fail(self, greenlet: gevent.Greenlet[[], object]) -> None:
        """End the process, so that its supervisor starts a new one."""
        log.error("the health process failed and ends", extra={"why": repr(greenlet.exception)})
        self._exit_status = 1
        self.stop()

    def _notify_when_ready(self) -> None:
        """Tell the service manager once backends were probed, so that the fleet is usable."""
        self._monitor.rounds.first_done.wait(_FIRST_ROUND_S)
        self._notifier.ready(self._publisher.status_line())

    def _serve(self) -> None:
        listen = self._monitor.fleet.config.health_check.listen
        if listen == "off":
            return
        live = LiveUpdates(self._run_dir.path)
        live.stopping = self._stopping.is_set
        context = AdminContext(
            role="health_process",
            environ=self._environ,
            live=live,
            generation=lambda: self._publisher.generation.context,
            snapshot=lambda: self._publisher.snapshot,
            health_process_alive=lambda: True,
            fleet_age_s=self._publisher.fleet_age_s,
            recent_outcomes=lambda: self._reporter.outcomes,
            problems=lambda: self._reporter.problems,
            run_dir_token=lambda: self._admin.run_dir_token,
        )
        app = operations_app(
            context, self._admin, keys=self._keys, budgets=self._budgets, usage=self._accounts
        )
        serve_operations(listen, app)

    def _poll(self) -> None:
        """Send a heartbeat, and handle requests of other processes in the run directory."""
        while True:
            gevent.sleep(_POLL_INTERVAL_S)
            generation = self._publisher.generation
            generation.context.slot_lease.restore_row()
            generation.context.slot_lease.row.record_heartbeat(time.monotonic_ns())
            stderr.flush_pending()
            generation.context.recorder.count_dropped_log_lines()
            try:
                if generation.follow():
                    self._changes.session_dir = generation.path
                    self._monitor.enter_generation()
                if self._run_dir.consume_reload_request():
                    gevent.spawn(self._reloader.reload)
                recover_abandoned(generation.context.slot_lease)
                self._monitor.label_models(self._label_requests.collect())
                self._monitor.probe_requested()
            except (OSError, NoFreeSlotError) as error:
                log.error("the run directory cannot be followed", extra={"why": error})
                gevent.sleep(_RETRY_S)
