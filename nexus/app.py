"""The composition root: the only place where the parts of a worker are put together."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from flask import Flask, request

from nexus.admin.context import GenerationContext, worker_context
from nexus.admin.dashboard import dashboard_endpoints
from nexus.admin.error_handlers import HttpOnly, register_error_handlers
from nexus.admin.live_updates import LiveUpdates
from nexus.admin.my_key_page import my_key_page
from nexus.admin.openapi import openapi_endpoint
from nexus.admin.operations import operations_endpoints
from nexus.config import Config, process_config
from nexus.fleet.background_table import BackgroundTable
from nexus.fleet.history import HistoryTable, Ring
from nexus.fleet.label_requests import LabelRequests
from nexus.fleet.prefix_table import PrefixTable
from nexus.fleet.records import Snapshot
from nexus.fleet.run_directory import RunDirectory, RunDirectoryError
from nexus.fleet.slot_lease import NoFreeSlotError, SlotLease
from nexus.fleet.snapshot import SnapshotReader
from nexus.fleet.sticky_table import StickyTable
from nexus.metrics.recorder import Recorder
from nexus.proxy.custom_endpoints import custom_endpoints
from nexus.proxy.endpoints import ENDPOINTS
from nexus.proxy.engine import Engine
from nexus.proxy.fleet_view import FleetView
from nexus.runtime import log as logs
from nexus.server.flask_endpoints import caller_of_request, openai_endpoints
from nexus.server.ingress import Ingress, environ_dialect

log = logging.getLogger("nexus.app")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """The parts of the application, as `app.extensions["nexus"]`."""

    generation: GenerationContext
    engine: Engine
    live: LiveUpdates

    @property
    def slot_lease(self) -> SlotLease:
        return self.generation.slot_lease

    @property
    def recorder(self) -> Recorder:
        return self.generation.recorder

    def close(self) -> None:
        """Release the slot, files and connections, for a process that outlives the gateway."""
        self.engine.connections.close()
        self.generation.close()


def create_app(
    config: Config | None = None, *, environ: MutableMapping[str, str] = os.environ
) -> Flask:
    """The gateway as a WSGI application, for one process.

    Without `config`, settings come from the environment; the rest comes with the fleet snapshot
    that the health process publishes. The application uses the slot that a hook of the server has
    leased. Without a hook (waitress, for example) it claims the run directory itself. It always
    starts: if it cannot share metrics with other processes, it logs that and counts in memory.
    """
    config = process_config(environ) if config is None else config
    _configure_logs(config)
    run_dir = RunDirectory.of(config)
    leased = _lease_slot(run_dir, environ)  # first: it makes the run directory
    fleet = FleetView(
        _snapshot_reader(run_dir.path),
        on_change=_apply_settings,
        want_label=LabelRequests(run_dir.path).request,
    )

    def health_process_alive() -> bool:
        slot_lease = generation.slot_lease
        return run_dir.health_process_alive() and not slot_lease.health_process_silent()

    def open_generation(slot_lease: SlotLease) -> GenerationContext:
        return GenerationContext(
            slot_lease, snapshot=fleet.snapshot, health_process_alive=health_process_alive
        )

    generation = _open(leased, open_generation)
    slot_lease, recorder = generation.slot_lease, generation.recorder
    files = slot_lease.generation
    engine = Engine(
        fleet=fleet,
        recorder=recorder,
        load=slot_lease.table,
        row=slot_lease.row,
        circuits=slot_lease.circuits,
        ring=_ring(slot_lease),
        limit_table=slot_lease.open_limit_table,
        share_table=slot_lease.open_share_table,
        prefixes=_shared(PrefixTable, files.prefixes if files else None, "prefixes of prompts"),
        sticky=_shared(StickyTable, files.sticky if files else None, "ids of responses"),
        background_table=lambda: _shared(
            BackgroundTable, files.background if files else None, "ends of responses"
        ),
        environ=environ,
        name=_gateway_name(slot_lease),
    )
    context = worker_context(
        run_dir,
        generation,
        snapshot=fleet.snapshot,
        health_process_alive=health_process_alive,
        history=engine.history,
        environ=environ,
    )

    app = HttpOnly("nexus", static_folder=None)
    app.register_blueprint(openai_endpoints(engine))
    app.register_blueprint(operations_endpoints(context))
    app.register_blueprint(dashboard_endpoints(context))
    app.register_blueprint(my_key_page(context, partial(caller_of_request, engine)))
    app.register_blueprint(openapi_endpoint(operations=False))
    register_error_handlers(
        app, rejected=recorder.rejected, dialect=lambda: environ_dialect(request.environ)
    )
    app.wsgi_app = Ingress(  # type: ignore[assignment,method-assign]
        app.wsgi_app,
        follow=fleet.current,
        cors=engine.cors,
        rejected=recorder.rejected,
        preflight=recorder.preflight,
    )
    app.extensions["nexus"] = Gateway(generation=generation, engine=engine, live=context.live)
    name = files.name if files else None
    log.info(
        "worker ready", extra={"pid": os.getpid(), "slot": slot_lease.slot, "generation": name}
    )
    return app


def _gateway_name(slot_lease: SlotLease) -> str | None:
    """The gateway's name in Via headers; it shows nothing of the host."""
    if slot_lease.generation is None:
        return None
    return f"nexus-{hashlib.sha256(slot_lease.generation.name.encode()).hexdigest()[:16]}"


def _lease_slot(run_dir: RunDirectory, environ: MutableMapping[str, str]) -> SlotLease:
    try:
        if slot_lease := SlotLease.from_environ(environ):
            return slot_lease
        lock = run_dir.claim(f"pid {os.getpid()}")
        slot_lease = SlotLease.lease(run_dir.new_generation(workers=1))
        slot_lease.attach(lock)
    except (RunDirectoryError, NoFreeSlotError, OSError) as error:
        return _unshared(error)
    return slot_lease


def _open(
    slot_lease: SlotLease, open_generation: Callable[[SlotLease], GenerationContext]
) -> GenerationContext:
    """Take over the files of the slot; count in memory if they cannot be used."""
    try:
        return open_generation(slot_lease)
    except OSError as error:
        slot_lease.release()
        return open_generation(_unshared(error))


def _unshared(error: Exception) -> SlotLease:
    log.error(
        "metrics of this process stay in its memory; no other process shows them",
        extra={"why": error},
    )
    return SlotLease.private()


def _ring(slot_lease: SlotLease) -> Ring:
    try:
        return slot_lease.history.ring(slot_lease.slot)
    except OSError as error:
        log.error("the history does not show requests of this process", extra={"why": error})
        return HistoryTable(None).ring(0)


def _shared(kind: Callable[[Path | None], T], path: Path | None, what: str) -> T:
    """A table at `path`; one of this process alone if that cannot be opened."""
    try:
        return kind(path)
    except OSError as error:
        log.error(f"{what} are not shared with other processes", extra={"why": error})
        return kind(None)


def _snapshot_reader(path: Path) -> SnapshotReader | None:
    try:
        return SnapshotReader(path)
    except OSError as error:
        log.error("the fleet snapshot cannot be read", extra={"why": error})
        return None


def _apply_settings(snapshot: Snapshot) -> None:
    ENDPOINTS.replace_custom(custom_endpoints(snapshot.config))
    _configure_logs(snapshot.config)


def _configure_logs(config: Config) -> None:
    settings = config.logging
    logs.configure(
        level=settings.level, kind=settings.format, component_levels=settings.component_levels
    )
