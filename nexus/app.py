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

from nexus.admin.access import names_token, token_for
from nexus.admin.dashboard import DashboardContext, dashboard_endpoints
from nexus.admin.errors import register_errors
from nexus.admin.live_updates import Live
from nexus.admin.openapi import openapi_endpoint
from nexus.admin.operations import Operations, operations_endpoints
from nexus.config import Config, process_config
from nexus.fleet.label_requests import LabelRequests
from nexus.fleet.records import Snapshot
from nexus.fleet.request_log import RequestLogTable, RequestRecord, Ring
from nexus.fleet.run_directory import RunDirectory, RunDirectoryError, Started
from nexus.fleet.slot_lease import NoFreeSlotError, SlotLease
from nexus.fleet.snapshot import SnapshotReader
from nexus.fleet.windows import read_windows
from nexus.metrics.collector import Collector
from nexus.metrics.gauges import FILE as GAUGE_FILE
from nexus.metrics.recorder import Recorder
from nexus.metrics.recovery import recover_slot
from nexus.metrics.store import Store
from nexus.proxy.engine import Engine
from nexus.proxy.fleet_view import FleetView
from nexus.runtime import log as logs
from nexus.server.flask_endpoints import openai_endpoints
from nexus.server.ingress import Ingress

log = logging.getLogger("nexus.app")


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """What the application was put together from, as `app.extensions["nexus"]`."""

    slot_lease: SlotLease
    store: Store
    recorder: Recorder
    engine: Engine
    live: Live

    def close(self) -> None:
        """Give back the seat, the files and the connections; for a process that goes on without the gateway."""
        self.engine.connections.close()
        self.store.close()
        self.slot_lease.release()


def create_app(
    config: Config | None = None, *, environ: MutableMapping[str, str] = os.environ
) -> Flask:
    """The gateway as a WSGI application, for one process.

    `config` None takes the environment's settings; everything else reaches the process with the fleet snapshot, which
    the health process publishes. The seat that a server's hook took is used; without a hook (waitress, say) the
    application claims the run directory itself. It always starts: where it can share no figures with other processes,
    it says so loudly and counts in memory.
    """
    config = process_config(environ) if config is None else config
    logs.configure(level=config.logging.level, kind=config.logging.format)
    run_dir = RunDirectory.of(config)
    slot_lease, store = _open_store(_take_seat(run_dir, environ))
    recorder = Recorder(store, slot_lease)

    fleet = FleetView(
        _snapshot_reader(run_dir.path),
        on_change=_follow_settings,
        want_label=LabelRequests(run_dir.path).ask,
    )
    engine = Engine(
        fleet=fleet,
        recorder=recorder,
        load=slot_lease.table,
        row=slot_lease.row,
        circuits=slot_lease.circuits,
        ring=_ring(slot_lease),
        environ=environ,
        name=_gateway_name(slot_lease),
    )

    def health_process_alive() -> bool:
        return run_dir.health_process_alive() and not slot_lease.health_process_silent()

    started = slot_lease.started() or Started.now(workers=1)
    figures = Collector(
        slot_lease,
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
                workers=slot_lease.workers,
                fleet_age_s=lambda: (
                    file_age_s(slot_lease.metrics / GAUGE_FILE) if slot_lease.metrics else None
                ),
                role="worker",
                token=lambda: token_for("metrics", fleet.snapshot(), environ),
                lately=lambda: read_windows(run_dir.path),
                own_token=run_dir.own_token,
                names_token=lambda: names_token(fleet.snapshot(), environ),
            )
        )
    )
    live = Live(run_dir.path)

    def latest(limit: int) -> list[RequestRecord]:
        engine.request_log.flush()
        return slot_lease.request_log.latest(range(slot_lease.table.rows), limit=limit)

    app.register_blueprint(
        dashboard_endpoints(
            DashboardContext(
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
    app.extensions["nexus"] = Gateway(
        slot_lease=slot_lease, store=store, recorder=recorder, engine=engine, live=live
    )
    log.info(
        "worker ready",
        extra={"pid": os.getpid(), "slot": slot_lease.slot, "generation": _name(slot_lease)},
    )
    return app


def _gateway_name(slot_lease: SlotLease) -> str | None:
    """What this start of the gateway is called in Via headers; it shows nothing of the host."""
    if slot_lease.generation is None:
        return None
    return f"nexus-{hashlib.sha256(slot_lease.generation.name.encode()).hexdigest()[:16]}"


def _take_seat(run_dir: RunDirectory, environ: MutableMapping[str, str]) -> SlotLease:
    try:
        if slot_lease := SlotLease.from_environ(environ):
            return slot_lease
        lock = run_dir.claim(f"pid {os.getpid()}")
        slot_lease = SlotLease.lease(run_dir.new_generation(workers=1))
        slot_lease.attach(lock)
    except (RunDirectoryError, NoFreeSlotError, OSError) as error:
        return _alone(error)
    return slot_lease


def _open_store(slot_lease: SlotLease) -> tuple[SlotLease, Store]:
    """The files of the seat, taken over from its last holder; in memory where they cannot be used."""
    try:
        recover_slot(slot_lease)
        return slot_lease, Store(slot_lease)
    except OSError as error:
        slot_lease.release()
        slot_lease = _alone(error)
        recover_slot(slot_lease)
        return slot_lease, Store(slot_lease)


def _ring(slot_lease: SlotLease) -> Ring:
    try:
        return slot_lease.request_log.ring(slot_lease.slot)
    except OSError as error:
        log.error(
            "requests of this process are not shown among the last ones", extra={"why": error}
        )
        return RequestLogTable(None).ring(0)


def _alone(error: Exception) -> SlotLease:
    log.error(
        "figures of this process stay in its memory, no scrape of another shows them",
        extra={"why": error},
    )
    return SlotLease.private()


def _snapshot_reader(path: Path) -> SnapshotReader | None:
    try:
        return SnapshotReader(path)
    except OSError as error:
        log.error("the fleet cannot be followed", extra={"why": error})
        return None


def _follow_settings(snapshot: Snapshot) -> None:
    settings = snapshot.config.logging
    logs.configure(
        level=settings.level, kind=settings.format, component_levels=settings.component_levels
    )


def file_age_s(path: Path) -> float | None:
    """Seconds since a file was written; None where there is none."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _name(slot_lease: SlotLease) -> str | None:
    return slot_lease.generation.name if slot_lease.generation else None
