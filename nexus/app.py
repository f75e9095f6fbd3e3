"""The composition root: the only place where the parts are put together."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from flask import Flask

from nexus import log as logs
from nexus.config import Config, process_config
from nexus.fleet.recent import Recent, RecentTable, Ring
from nexus.fleet.records import Snapshot
from nexus.fleet.rundir import RunDirectory, RunDirectoryError, Started
from nexus.fleet.seat import NoSeatError, Seat
from nexus.fleet.snapshot import SnapshotReader
from nexus.fleet.wanted import WantedLabels
from nexus.fleet.windows import read_windows
from nexus.metrics.figures import Figures
from nexus.metrics.gauges import FILE as GAUGE_FILE
from nexus.metrics.recorder import Recorder
from nexus.metrics.settlement import settle
from nexus.metrics.store import Store
from nexus.proxy.engine import Engine
from nexus.proxy.view import FleetView
from nexus.web.access import names_token, token_for
from nexus.web.dashboard import Viewed, dashboard_endpoints
from nexus.web.errors import register_errors
from nexus.web.ingress import Ingress
from nexus.web.live import Live
from nexus.web.openai import openai_endpoints
from nexus.web.openapi import openapi_endpoint
from nexus.web.operations import Operations, operations_endpoints

log = logging.getLogger("nexus.app")


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """What the application was put together from, as `app.extensions["nexus"]`."""

    seat: Seat
    store: Store
    recorder: Recorder
    engine: Engine
    live: Live

    def close(self) -> None:
        """Give back the seat, the files and the connections; for a process that goes on without the gateway."""
        self.engine.connections.close()
        self.store.close()
        self.seat.leave()


def create_app(config: Config | None = None, *, environ: MutableMapping[str, str] = os.environ) -> Flask:
    """The gateway as a WSGI application, for one process.

    `config` None takes the environment's settings; everything else reaches the process with the fleet snapshot, which
    the health process publishes. The seat that a server's hook took is used; without a hook (waitress, say) the
    application claims the run directory itself. It always starts: where it can share no figures with other processes,
    it says so loudly and counts in memory.
    """
    config = process_config(environ) if config is None else config
    logs.configure(level=config.logging.level, kind=config.logging.format)
    run_dir = RunDirectory.of(config)
    seat, store = _open_store(_take_seat(run_dir, environ))
    recorder = Recorder(store, seat)

    fleet = FleetView(
        _snapshot_reader(run_dir.path),
        on_change=_follow_settings,
        want_label=WantedLabels(run_dir.path).ask,
    )
    engine = Engine(
        fleet=fleet,
        recorder=recorder,
        load=seat.table,
        row=seat.row,
        circuits=seat.circuits,
        ring=_ring(seat),
        environ=environ,
        name=_gateway_name(seat),
    )

    def health_process_alive() -> bool:
        return run_dir.health_process_alive() and not seat.health_process_silent()

    started = seat.started() or Started.now(workers=1)
    figures = Figures(
        seat,
        store.registry,
        started=started,
        snapshot=fleet.snapshot,
        health_process_alive=health_process_alive,
    )

    app = Flask("nexus", static_folder=None)
    app.register_blueprint(openai_endpoints(engine))
    app.register_blueprint(
        operations_endpoints(
            Operations(
                figures=lambda: figures,
                snapshot=fleet.snapshot,
                started=lambda: started,
                health_process_alive=health_process_alive,
                workers=seat.workers,
                fleet_age_s=lambda: file_age_s(seat.metrics / GAUGE_FILE) if seat.metrics else None,
                role="worker",
                token=lambda: token_for("metrics", fleet.snapshot(), environ),
                lately=lambda: read_windows(run_dir.path),
                own_token=run_dir.own_token,
                names_token=lambda: names_token(fleet.snapshot(), environ),
            )
        )
    )
    live = Live(run_dir.path)

    def latest(limit: int) -> list[Recent]:
        engine.recents.flush()
        return seat.recent.latest(range(seat.table.rows), limit=limit)

    app.register_blueprint(
        dashboard_endpoints(
            Viewed(
                snapshot=fleet.snapshot,
                latest=latest,
                live=live,
                token=lambda: token_for("dashboard", fleet.snapshot(), environ),
                for_clients=True,
            )
        )
    )
    app.register_blueprint(openapi_endpoint(operations=False))
    register_errors(app, rejected=recorder.rejected)
    app.wsgi_app = Ingress(  # type: ignore[assignment,method-assign]
        app.wsgi_app, cors=engine.cors, rejected=recorder.rejected, preflight=recorder.preflight
    )
    app.extensions["nexus"] = Gateway(seat=seat, store=store, recorder=recorder, engine=engine, live=live)
    log.info("worker ready", extra={"pid": os.getpid(), "slot": seat.slot, "generation": _name(seat)})
    return app


def _gateway_name(seat: Seat) -> str | None:
    """What this start of the gateway is called in Via headers; it shows nothing of the host."""
    if seat.generation is None:
        return None
    return f"nexus-{hashlib.sha256(seat.generation.name.encode()).hexdigest()[:16]}"


def _take_seat(run_dir: RunDirectory, environ: MutableMapping[str, str]) -> Seat:
    try:
        if seat := Seat.handed_over(environ):
            return seat
        lock = run_dir.claim(f"pid {os.getpid()}")
        seat = Seat.lease(run_dir.new_generation(workers=1))
        seat.keep(lock)
    except (RunDirectoryError, NoSeatError, OSError) as error:
        return _alone(error)
    return seat


def _open_store(seat: Seat) -> tuple[Seat, Store]:
    """The files of the seat, taken over from its last holder; in memory where they cannot be used."""
    try:
        settle(seat)
        return seat, Store(seat)
    except OSError as error:
        seat.leave()
        seat = _alone(error)
        settle(seat)
        return seat, Store(seat)


def _ring(seat: Seat) -> Ring:
    try:
        return seat.recent.ring(seat.slot)
    except OSError as error:
        log.error("requests of this process are not shown among the last ones", extra={"why": error})
        return RecentTable(None).ring(0)


def _alone(error: Exception) -> Seat:
    log.error("figures of this process stay in its memory, no scrape of another shows them", extra={"why": error})
    return Seat.alone()


def _snapshot_reader(path: Path) -> SnapshotReader | None:
    try:
        return SnapshotReader(path)
    except OSError as error:
        log.error("the fleet cannot be followed", extra={"why": error})
        return None


def _follow_settings(snapshot: Snapshot) -> None:
    settings = snapshot.config.logging
    logs.configure(level=settings.level, kind=settings.format, component_levels=settings.component_levels)


def file_age_s(path: Path) -> float | None:
    """Seconds since a file was written; None where there is none."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _name(seat: Seat) -> str | None:
    return seat.generation.name if seat.generation else None
