"""The health process's life: rounds of probes, publishing, following the gateway's generations, its own port."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
import gevent.event
from flask import Flask
from msgspec.structs import replace

from nexus.admin.access import Protected, names_token, own_token, token_for
from nexus.admin.changes import BackendExists, UnknownBackend
from nexus.admin.dashboard import DashboardContext
from nexus.admin.live_updates import Live
from nexus.admin.operations import Operations
from nexus.config import Config, ConfigError, LoadedConfig, load
from nexus.config.addresses import listen_address
from nexus.config.changes import Overlay, OverlayLayer, parse_backend
from nexus.config.loading import restart_needed
from nexus.fleet.dashboard_state import write_live
from nexus.fleet.label_requests import LabelRequests
from nexus.fleet.load_table import HEALTH, Row
from nexus.fleet.records import Snapshot
from nexus.fleet.reload_report import Reload, last_reload, write_reload
from nexus.fleet.request_log import RequestRecord
from nexus.fleet.run_directory import RunDirectory, Started
from nexus.fleet.slot_lease import NoFreeSlotError, SlotLease
from nexus.fleet.snapshot import SnapshotReader, SnapshotWriter
from nexus.fleet.windows import RecentOutcomes, write_windows
from nexus.health.backend_status import backend_states, status_line
from nexus.health.changes import ChangeFiles
from nexus.health.dashboard import Dashboard
from nexus.health.detection import detect
from nexus.health.fleet import Fleet
from nexus.health.probe_rounds import Rounds
from nexus.health.prober import Result
from nexus.health.server import OperationsServer, operations_app
from nexus.health.windows import Windows
from nexus.metrics.collector import Collector
from nexus.metrics.gauges import write_fleet_gauges
from nexus.metrics.recorder import Recorder
from nexus.metrics.recovery import recover_abandoned, recover_slot
from nexus.metrics.store import Store
from nexus.runtime import log as logs
from nexus.runtime import stderr
from nexus.runtime.files import PRIVATE, write_atomically
from nexus.runtime.sd_notify import Notifier
from nexus.runtime.text import redact, remember_secret

log = logging.getLogger("nexus.health")

_TICK_S = 0.25
"""How often the run directory is looked at: a killed worker's requests leave the gauges within a second."""
_SHOW_EVERY_S = 1.0
_LOOK_BACK_EVERY_S = 5.0
_LISTEN_RETRY_S = 5.0
_WANTED_EVERY_S = 5.0
_FIRST_ROUND_S = 10.0
"""So long the service manager waits for the first round: a backend that hangs must not hold up the start."""


class GenerationContext:
    """The process's seat in one generation, and what counts and reads there."""

    def __init__(self, slot_lease: SlotLease, health: HealthProcess) -> None:
        recover_slot(slot_lease)
        self.slot_lease = slot_lease
        self.store = Store(slot_lease)
        self.recorder = Recorder(self.store, slot_lease)
        self.started = slot_lease.started() or Started.now()
        self.figures = Collector(
            slot_lease,
            self.store.registry,
            started=self.started,
            snapshot=health.current_snapshot,
            health_process_alive=lambda: True,
        )

    def leave(self) -> None:
        self.store.close()
        self.slot_lease.release()


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
        self._environ = environ
        self._notifier = notifier or Notifier(None)
        self._rounds = Rounds(
            environ, on_result=self._probed, on_details=self._detailed, on_round=self._round_ended
        )
        self._run_dir = run_dir
        self._path = loaded.path
        # Who starts the processes tells them some settings in the environment; whether those changed, the file says.
        self._in_file = _alone(loaded.path)
        self._writer = SnapshotWriter(run_dir.path)
        self._wanted = LabelRequests(run_dir.path)
        before = SnapshotReader(run_dir.path).read()
        self._snapshot: Snapshot | None = before
        self._updated_at = 0.0
        self._loaded_at = time.time()
        self._last_reload_good = True
        self._stopping = gevent.event.Event()
        self._status = 0
        self._place = self._sit_down()
        self._changes = ChangeFiles(loaded.path, environ)
        self._changes.follow(self._generation())
        self._token_file = run_dir.path / "admin.token"
        self._own_token = secrets.token_urlsafe(32)
        remember_secret(self._own_token)
        write_atomically(self._token_file, self._own_token.encode(), mode=PRIVATE)
        self._probed_for: dict[str, float] = {}
        self._dashboard = Dashboard()
        self._lately: dict[str, RecentOutcomes] = {}
        self._live = Live(run_dir.path)
        self._live.stopping = self._stopping.is_set
        self._fleet: Fleet
        self._take_up(self._fleet_of(loaded.config))

    def current_snapshot(self) -> Snapshot | None:
        return self._snapshot

    def run(self) -> int:
        """Probe, publish and serve until `stop()`; gives the exit status, 1 where a part of it failed."""
        gevent.signal_handler(signal.SIGTERM, self.stop)
        gevent.signal_handler(signal.SIGINT, self.stop)
        gevent.signal_handler(signal.SIGHUP, self.reload)
        work = (
            self._rounds.run,
            self._ticks,
            self._serve,
            self._show,
            self._look_back,
            self._tell_when_ready,
        )
        helpers = [gevent.spawn(part) for part in work]
        helpers.append(gevent.spawn(lambda: self._notifier.feed_watchdog(gevent.sleep)))
        for helper in helpers:
            helper.link_exception(self._failed)
        log.info(
            "health process ready",
            extra={"pid": os.getpid(), "backends": len(self._fleet.backends)},
        )
        self._stopping.wait()
        self._notifier.stopping()
        gevent.killall(helpers)
        self._place.leave()
        log.info("health process stopped", extra={"pid": os.getpid()})
        return self._status

    def stop(self) -> None:
        self._stopping.set()

    def _tell_when_ready(self) -> None:
        """Once the backends have been looked at: a gateway that waits for this one starts with a fleet it can use."""
        self._rounds.first_done.wait(_FIRST_ROUND_S)
        self._notifier.ready(self._status_line())

    def _status_line(self) -> str:
        return status_line(self._snapshot, last_reload_good=self._last_reload_good)

    def _failed(self, helper: gevent.Greenlet[[], None]) -> None:
        """A health process that only seems to work is worse than none: it ends, and whoever supervises it starts it."""
        log.error("the health process failed and ends", extra={"why": repr(helper.exception)})
        self._status = 1
        self.stop()

    def reload(self) -> None:
        """Read the configuration again; one that is wrong changes nothing. How it went is left for who asked."""
        self._notifier.reloading()
        try:
            self._reload()
        finally:
            self._notifier.ready(self._status_line())

    def _reload(self) -> None:
        count = last_reload(self._run_dir.path).count + 1
        try:
            loaded = load(self._path, environ=self._environ)
            fleet = self._fleet_of(loaded.config)
        except ConfigError as error:
            log.error(
                "configuration not reloaded, the old one stays",
                extra={"why": "; ".join(error.problems)},
            )
            self._last_reload_good = False
            self._write_gauges()
            self._leave_word(Reload(count=count, problems=tuple(map(redact, error.problems))))
            return
        in_file = _alone(self._path)
        restart = restart_needed(self._in_file, in_file) if self._in_file and in_file else []
        self._last_reload_good, self._loaded_at = True, time.time()
        settings = loaded.config.logging
        logs.configure(
            level=settings.level, kind=settings.format, component_levels=settings.component_levels
        )
        published = self._take_up(fleet)
        if not published:
            problem = (
                f"The new fleet cannot be written into {self._run_dir.path}; its log line says why."
            )
            self._leave_word(Reload(count=count, problems=(problem,)))
            return
        backends = len(self._fleet.backends)
        log.info(
            "configuration reloaded",
            extra={"backends": backends, "after_a_restart": ", ".join(restart) or None},
        )
        for warning in loaded.warnings:
            log.warning(warning)
        self._leave_word(
            Reload(
                count=count,
                warnings=tuple(loaded.warnings),
                restart=tuple(restart),
                backends=backends,
            )
        )
        gevent.spawn(self._rounds.round)

    def _leave_word(self, reload: Reload) -> None:
        try:
            write_reload(self._run_dir.path, reload)
        except OSError as error:
            log.error("how the reload went cannot be told", extra={"why": error})

    # What operators change at the running gateway

    def hosts(self) -> list[str]:
        """The names by which the operations port is reached."""
        config = self._fleet.config
        listen = config.health_check.listen
        return [*config.admin.hosts, *([] if listen == "off" else [listen_address(listen)[0]])]

    def admin_token(self) -> str:
        """The operators' own token, else the one that only who may read the run directory knows."""
        return own_token(self._fleet.config.admin, self._environ) or self._own_token

    def backends(self) -> list[dict[str, Any]]:
        return backend_states(self._snapshot, self._place.slot_lease) if self._snapshot else []

    def add_backend(self, data: dict[str, Any], *, save: bool) -> dict[str, Any]:
        backend = parse_backend(data)
        self._check_key_name(backend.api_key_env)
        if data.get("type") is None and not self._fleet.layered.has(backend.name):
            kind = detect(
                backend, self._environ, timeout_s=self._fleet.config.health_check.timeout_seconds
            )
            backend = replace(backend, type=kind)
        if self._fleet.layered.has(backend.name):
            raise BackendExists(backend.name)
        if unsupported := backend.provider.unsupported:
            raise ConfigError(
                [f'[backends] type = "{backend.type}" cannot be used: {unsupported}.']
            )
        self._change(
            self._fleet.layered.add(backend, save=save), f"backend {backend.name} added", saved=save
        )
        gevent.spawn(self._rounds.probe, backend.name)
        return self._shown(backend.name)

    def _check_key_name(self, name: str | None) -> None:
        """Raises `ConfigError` for a secret that the file lets no backend have."""
        layered = self._fleet.layered
        used = {backend.api_key_env for backend in layered.file.backends}
        if name is not None and name not in used and name not in layered.file.admin.api_key_envs:
            raise ConfigError(
                [
                    f"[backends] api_key_env = {name!r} is not allowed here: a backend that is added to the running "
                    "gateway takes a name that the file uses already, or that [admin] api_key_envs lists."
                ]
            )

    def remove_backend(self, name: str, *, save: bool) -> None:
        self._change(
            self._known(name).remove(name, save=save), f"backend {name} removed", saved=save
        )

    def drain_backend(self, name: str, *, on: bool, save: bool) -> dict[str, Any]:
        layered = self._known(name).drain(name, on=on, save=save)
        self._change(
            layered, f"backend {name} {'drained' if on else 'takes requests again'}", saved=save
        )
        return self._shown(name)

    def _known(self, name: str) -> Overlay:
        if not self._fleet.layered.has(name):
            raise UnknownBackend(name)
        return self._fleet.layered

    def _shown(self, name: str) -> dict[str, Any]:
        return next(backend for backend in self.backends() if backend["name"] == name)

    def _change(self, layered: Overlay, what: str, *, saved: bool) -> None:
        """Have the gateway go on with this configuration, and keep it. Raises `ConfigError`, then nothing changes."""
        fleet = Fleet(layered, now=time.time(), before=self._snapshot)
        self._changes.write(self._fleet.layered, layered)
        if not self._take_up(fleet):
            raise ConfigError(
                [f"The new fleet cannot be written into {self._run_dir.path}; the log says why."]
            )
        log.info(what, extra={"saved": saved, "backends": len(fleet.backends)})

    # The fleet

    def _fleet_of(self, config: Config) -> Fleet:
        """The fleet of a configuration file, with what was changed at the running gateway. Raises `ConfigError`."""
        return Fleet(self._changes.over(config), now=time.time(), before=self._snapshot)

    def _take_up(self, fleet: Fleet) -> bool:
        """Watch this fleet from now on; False where it could not be published."""
        self._fleet = fleet
        self._rounds.follow(fleet)
        for column in fleet.give_columns(self._place.slot_lease.table.idle_columns):
            self._place.slot_lease.circuits.reset(column, time.monotonic_ns())
        return self._publish()

    def _round_ended(self) -> None:
        self._updated_at = time.time()
        self._fleet.retire_labels(monotonic=time.monotonic())
        self._publish()

    def _probed(self, name: str, result: Result) -> None:
        """Take up one probe's result; the fleet is published at once if it changed."""
        fleet = self._fleet
        watched = fleet.backends[name]
        if result.latency_s is not None:
            label = self._snapshot_label(name)
            self._place.recorder.probe_answered(label, result.latency_s)
        before, last_error = watched.models, watched.last_error
        changed = fleet.take(name, result, now=time.time())
        if changed:
            say = log.info if changed[1] == "healthy" else log.warning
            say(
                "backend is now " + changed[1],
                extra={"backend": name, "was": changed[0], "why": result.error},
            )
            if changed[1] == "healthy":
                self._place.slot_lease.circuits.allow_trial(watched.column, time.monotonic_ns())
        elif result.success:
            untried_ns = int(fleet.config.circuit_breaker.open_seconds * 1e9)
            self._place.slot_lease.circuits.close_untried(
                watched.column, time.monotonic_ns(), after_ns=untried_ns
            )
        elif not fleet.config.health_check.enabled and result.error != last_error:
            log.warning(
                "the backend's models cannot be read", extra={"backend": name, "why": result.error}
            )
        if changed or watched.models is not before:
            self._publish()

    def _detailed(self, name: str, result: Result) -> None:
        """More is known of a backend's models than when it was probed."""
        if self._fleet.know(name, result):
            self._publish()

    def _snapshot_label(self, name: str) -> str:
        assert self._snapshot is not None
        return next(backend.label for backend in self._snapshot.backends if backend.name == name)

    def _publish(self) -> bool:
        self._snapshot = self._fleet.snapshot(
            revision=self._writer.next_revision(), now=time.time()
        )
        try:
            self._writer.publish(self._snapshot)
        except OSError as error:
            log.error("the fleet cannot be published", extra={"why": error})
            return False
        finally:
            self._write_gauges()
        self._notifier.status(self._status_line())
        return True

    def _write_gauges(self) -> None:
        if self._snapshot is None or self._place.slot_lease.metrics is None:
            return
        try:
            write_fleet_gauges(
                self._place.slot_lease.metrics,
                self._snapshot,
                updated_at=self._updated_at,
                loaded_at=self._loaded_at,
                last_reload_good=self._last_reload_good,
            )
        except OSError as error:
            log.error("the fleet's gauges cannot be written", extra={"why": error})

    # The run directory

    def _sit_down(self) -> GenerationContext:
        """A seat in the current generation; the first one is made where the gateway has not started yet."""
        generation = self._run_dir.current() or self._run_dir.new_generation()
        return GenerationContext(SlotLease.lease(generation, role=HEALTH), self)

    def _generation(self) -> Path:
        generation = self._place.slot_lease.generation
        assert generation is not None
        return generation.path

    def _ticks(self) -> None:
        while True:
            gevent.sleep(_TICK_S)
            self._place.slot_lease.restore_row()
            self._place.slot_lease.row.record_heartbeat(time.monotonic_ns())
            stderr.flush_pending()
            self._place.recorder.count_dropped_log_lines()
            try:
                self._follow()
                if self._run_dir.consume_reload_request():
                    gevent.spawn(self.reload)
                recover_abandoned(self._place.slot_lease)
                if (wanted := self._wanted.take()) and self._fleet.label_models(wanted):
                    self._publish()
                self._probe_wanted()
            except (OSError, NoFreeSlotError) as error:
                log.error("the run directory cannot be followed", extra={"why": error})
                gevent.sleep(_LISTEN_RETRY_S)

    def _probe_wanted(self) -> None:
        """Probe at once what requests found to be other than its last probe said, each once in a few seconds."""
        now, circuits = time.monotonic(), self._place.slot_lease.circuits
        for name, watched in self._fleet.backends.items():
            if now - self._probed_for.get(
                name, -_WANTED_EVERY_S
            ) >= _WANTED_EVERY_S and circuits.pop_probe_request(watched.column):
                self._probed_for[name] = now
                gevent.spawn(self._rounds.probe, name)

    def _follow(self) -> None:
        """Move to the generation of a gateway that was started anew: all its figures begin at zero, ours too."""
        current, mine = self._run_dir.current(), self._place.slot_lease.generation
        if current is None or mine is None or current.name == mine.name:
            return
        old, self._place = (
            self._place,
            GenerationContext(SlotLease.lease(current, role=HEALTH), self),
        )
        old.leave()
        self._changes.follow(current.path)
        if self._fleet.layered.session != OverlayLayer():  # that was for the gateway's last run
            self._take_up(
                Fleet(
                    replace(self._fleet.layered, session=OverlayLayer()),
                    now=time.time(),
                    before=self._snapshot,
                )
            )
        self._fleet.forget_absent_labels()
        self._publish()
        log.info("following the gateway's new start", extra={"generation": current.name})

    # What the dashboard shows

    def _show(self) -> None:
        while True:
            gevent.sleep(_SHOW_EVERY_S)
            if self._snapshot is None or not self._fleet.config.dashboard.enabled:
                continue
            place = self._place
            uptime_s = max(0.0, time.monotonic() - place.started.monotonic)
            try:
                reading = place.figures.collect()
                lines = self._dashboard.sample(
                    reading,
                    self._snapshot,
                    place.slot_lease,
                    uptime_s=uptime_s,
                    now=time.time(),
                    at=time.monotonic(),
                    lately=self._lately,
                )
                write_live(self._run_dir.path, *lines)
            except OSError as error:
                log.error("the dashboard's state cannot be written", extra={"why": error})
                gevent.sleep(_LISTEN_RETRY_S)

    def _look_back(self) -> None:
        """Sample the counters, for what is told of each backend's last hour and day."""
        place, windows = self._place, Windows(started=self._place.started.monotonic)
        while True:
            if place is not self._place:
                place, windows = self._place, Windows(started=self._place.started.monotonic)
            try:
                self._lately = windows.sample(place.figures.collect(), now=time.monotonic())
                write_windows(self._run_dir.path, self._lately)
            except OSError as error:
                log.error("the last hour and day cannot be written", extra={"why": error})
            gevent.sleep(_LOOK_BACK_EVERY_S)

    def _latest(self, limit: int) -> list[RequestRecord]:
        slot_lease = self._place.slot_lease
        return slot_lease.request_log.latest(range(slot_lease.table.rows), limit=limit)

    def _workers(self) -> list[Row]:
        return self._place.slot_lease.workers()

    def _token_for(self, what: Protected) -> str | None:
        return token_for(what, self._snapshot, self._environ)

    # Its own port

    def _serve(self) -> None:
        listen = self._fleet.config.health_check.listen
        if listen == "off":
            return
        while True:
            server = OperationsServer(listen_address(listen), self.operations_app())
            try:
                server.start()
            except OSError as error:
                log.error(
                    "the operations port cannot be opened, trying again",
                    extra={"listen": listen, "why": error},
                )
                gevent.sleep(_LISTEN_RETRY_S)
                continue
            server.serve_forever()

    def operations_app(self) -> Flask:
        """The same metrics as from any worker, also when every worker is busy or dead."""
        operations = Operations(
            figures=lambda: self._place.figures,
            snapshot=self.current_snapshot,
            started=lambda: self._place.started,
            health_process_alive=lambda: True,
            fleet_age_s=lambda: time.time() - self._updated_at if self._updated_at else None,
            workers=self._workers,
            role="health_process",
            token=lambda: self._token_for("metrics"),
            lately=lambda: self._lately,
            own_token=lambda: self._own_token,
            names_token=lambda: names_token(self._snapshot, self._environ),
        )
        viewed = DashboardContext(
            snapshot=self.current_snapshot,
            latest=self._latest,
            live=self._live,
            token=lambda: self._token_for("dashboard"),
            for_clients=False,
        )
        return operations_app(operations, viewed, self)


def _alone(path: Path | None) -> Config | None:
    """What the file says by itself; None where that cannot be used without the environment."""
    try:
        return load(path, environ={}).config if path else None
    except ConfigError:
        return None
