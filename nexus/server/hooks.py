"""gunicorn's hooks. After the start none may raise: that would end the whole service."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from nexus.config import Config, ConfigError, process_config
from nexus.fleet.locks import LockFile
from nexus.fleet.run_directory import Generation, RunDirectory, RunDirectoryError
from nexus.fleet.slot_lease import NoFreeSlotError, SlotLease
from nexus.proxy.fleet_view import FleetView
from nexus.runtime import log as logs
from nexus.runtime.host import raise_descriptor_limit
from nexus.runtime.parent_death import end_with_parent
from nexus.runtime.sd_notify import Notifier
from nexus.server.arbiter import Master
from nexus.server.refusals import ErrorWriter, dialect_of_parsed

log = logging.getLogger("nexus.server")

_POLL_INTERVAL_S = 0.05

_UNSUPPORTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "--preload": (
        lambda cfg: cfg.preload_app,
        "each worker makes its own application (the program is imported before the fork anyway)",
    ),
    "--user": (
        lambda cfg: cfg.uid != os.geteuid(),
        "the run directory belongs to the user who starts gunicorn; start it as the other user",
    ),
    "--worker-class": (
        lambda cfg: "asgi" in cfg.worker_class_str,
        "Nexus is a WSGI application; leave the option out",
    ),
    "--protocol": (lambda cfg: cfg.protocol != "http", "workers speak HTTP only"),
    "--http2-cleartext": (
        lambda cfg: cfg.http2_cleartext != "off",
        "workers speak HTTP/1.1 only; let a balancer in front speak HTTP/2",
    ),
}
"""gunicorn's options with which requests would fail or not be counted: when, and why."""


@cache  # HUP reads gunicorn.conf.py again, and must not end the master
def environment() -> tuple[Config, int]:
    """The environment's settings, and `$NEXUS_MAX_REQUESTS`; ends the process if one is wrong."""
    recycle_after = os.environ.get("NEXUS_MAX_REQUESTS") or "0"
    try:
        config = process_config()
        if not recycle_after.isdecimal():
            problem = f"{recycle_after!r} is not allowed; it takes a whole number from 0."
            raise ConfigError(f"environment variable NEXUS_MAX_REQUESTS: {problem}")
    except ConfigError as error:
        logs.fatal(str(error))
        sys.exit(2)
    return config, int(recycle_after)


def on_starting(server: Any) -> None:
    """Claim the run directory and start a generation, once: a reload keeps both."""
    end_with_parent()
    raise_descriptor_limit()
    Master.install(server)
    # gunicorn would report that it is ready before it has a worker, if it found $NOTIFY_SOCKET.
    server.nexus_notifier = Notifier.from_environ(os.environ)
    try:
        config = process_config()
        settings = config.logging
        logs.configure(
            level=settings.level, kind=settings.format, component_levels=settings.component_levels
        )
        run_dir = RunDirectory.of(config)
        where = f"{config.server.host}:{config.server.port}"
        server.nexus_claim = run_dir.claim(f"the gateway at {where} (pid {os.getpid()})")
        server.nexus_generation = run_dir.new_generation(workers=server.cfg.workers)
        _check_worker_tmp_dir(server.cfg.worker_tmp_dir)
    except (ConfigError, RunDirectoryError) as error:
        logs.fatal(str(error))
        sys.exit(2)
    except OSError as error:
        logs.fatal(f"The run directory cannot be used ({error}); name another in $NEXUS_RUN_DIR.")
        sys.exit(2)
    log.info("gateway starting", extra={"pid": os.getpid(), "run_dir": run_dir.path})


def name_listeners(server: Any) -> None:
    """State in the claim where gunicorn listens: its options, or systemd's socket, may say so."""
    where = ", ".join(map(str, server.LISTENERS))
    with contextlib.suppress(OSError):  # the run directory may be full
        server.nexus_claim.write_note(f"the gateway at {where} (pid {os.getpid()})")


def _check_worker_tmp_dir(directory: str | None) -> None:
    """gunicorn creates a heartbeat file for each worker there."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        where = directory or "any temporary directory"
        raise RunDirectoryError(
            f"No file can be created in {where} ({error.strerror}); "
            "name another directory with --worker-tmp-dir or $TMPDIR."
        ) from error


def unsupported_option(cfg: Any) -> str | None:
    """Why gunicorn's settings cannot be used; None if they can."""
    for option, (is_used, why) in _UNSUPPORTED.items():
        if is_used(cfg):
            return f"gunicorn's option {option} cannot be used: {why}."
    return None


def nworkers_changed(server: Any, _new: int, old: int | None) -> None:
    """Give gunicorn's own log the format of Nexus's; at the start, refuse unsupported options.

    gunicorn calls this whenever it has set up its log: at the start before its first line, and at a
    reload. A `logconfig_dict` would do it too, but it would override all of gunicorn's options that
    concern logs. Handlers of an operator's `--log-config` keep their format.
    """
    if old is None and (refusal := unsupported_option(server.cfg)):
        logs.fatal(refusal)
        sys.exit(2)  # before gunicorn would preload the application
    formatter = logs.make_formatter(environment()[0].logging.format)
    for handler in server.log.error_log.handlers:
        if isinstance(handler, logging.StreamHandler) and hasattr(handler, "_gunicorn"):
            handler.setFormatter(formatter)


def post_fork(server: Any, worker: Any) -> None:
    """Lease a slot for the worker. Without one it serves, and counts in its own memory."""
    try:
        for sibling in getattr(server, "replaced", {}).values():
            sibling.tmp.close()  # as gunicorn does for the workers in its own table
        claim: LockFile = server.nexus_claim
        # The fork shares the lock. A worker that outlives its master must not hold it.
        claim.close()
        generation: Generation = server.nexus_generation
        SlotLease.lease(generation, nth=worker.age).export_to(os.environ)
    except (NoFreeSlotError, OSError, AttributeError) as error:
        log.error("worker has no slot", extra={"pid": worker.pid, "why": error})
    worker.nexus_notifier = getattr(server, "nexus_notifier", None)


def post_worker_init(worker: Any) -> None:
    """The application is loaded: report when it can serve, and count what never reaches it."""
    try:
        gateway = worker.wsgi.extensions["nexus"]
    except (AttributeError, KeyError) as error:
        log.error("worker has not loaded Nexus", extra={"pid": worker.pid, "why": error})
        return
    _respond_in_dialect(worker, gateway.recorder)
    gateway.live.stopping = lambda: not worker.alive  # the dashboard's viewers do not delay the end
    if worker.nexus_notifier:
        # gevent's patch makes this a greenlet, which first runs when the worker's loop does.
        args = (worker.nexus_notifier, gateway.engine.fleet)
        threading.Thread(target=_report_ready, args=args, name="ready", daemon=True).start()


def worker_exit(_server: Any, worker: Any) -> None:
    """Runs last in the worker. A worker that exits with 0 is not counted as one that died."""
    error = sys.exc_info()[1]
    if isinstance(error, SystemExit) and not error.code:
        # It may never have loaded the application.
        with contextlib.suppress(AttributeError, KeyError, TypeError):
            worker.wsgi.extensions["nexus"].slot_lease.row.mark_departed()


def on_reload(server: Any) -> None:
    """HUP: the workers are about to be replaced. The first new one reports that it is ready."""
    if notifier := getattr(server, "nexus_notifier", None):
        notifier.reloading()


def _report_ready(notifier: Notifier, fleet: FleetView) -> None:
    """Report to the service manager once there is a fleet. Each worker does; the first counts."""
    while fleet.snapshot() is None:
        notifier.status("Waiting for the health process to publish the fleet.")
        time.sleep(_POLL_INTERVAL_S)
    notifier.ready("Serving.")


def _respond_in_dialect(worker: Any, recorder: Any) -> None:
    """Count requests that gunicorn responds to, and have it do so in their dialect: its parser
    refused them, or the application raised."""
    respond = worker.handle_error

    def handle_error(req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        if not isinstance(client, ErrorWriter):
            dialect = dialect_of_parsed(req or getattr(exc, "req", None))
            client = ErrorWriter(client, exc, dialect=dialect, rejected=recorder.rejected)
        respond(req, client, addr, exc)

    worker.handle_error = handle_error
