"""gunicorn's hooks. After the start none may raise: an exception in one ends the whole service.

The master never imports prometheus_client: a process must have its seat before the library opens files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
from typing import Any

from nexus.config import ConfigError, process_config
from nexus.fleet.locks import LockFile
from nexus.fleet.run_directory import Generation, RunDirectory, RunDirectoryError
from nexus.fleet.slot_lease import NoFreeSlotError, SlotLease
from nexus.runtime import log as logs
from nexus.runtime.host import raise_descriptor_limit
from nexus.runtime.parent_death import end_with_parent
from nexus.runtime.sd_notify import Notifier
from nexus.server.arbiter import Master

log = logging.getLogger("nexus.server")

_LOOK_EVERY_S = 0.05


def on_starting(server: Any) -> None:
    """Claim the run directory and start a generation, once for the master's life; a reload is no new generation."""
    end_with_parent()
    raise_descriptor_limit()
    Master.take_over(server)
    # gunicorn itself says it is ready before it has a worker, where it finds whom to say it to.
    server.nexus_notifier = Notifier.from_environ(os.environ)
    try:
        config = process_config()
        logs.configure(level=config.logging.level, kind=config.logging.format)
        run_dir = RunDirectory.of(config)
        where = f"{config.server.host}:{config.server.port}"
        server.nexus_claim = run_dir.claim(f"the gateway at {where} (pid {os.getpid()})")
        server.nexus_generation = run_dir.new_generation(workers=server.cfg.workers)
        _check_scratch(server.cfg.worker_tmp_dir)
    except (ConfigError, RunDirectoryError) as error:
        logs.fatal(str(error))
        sys.exit(2)
    except OSError as error:
        logs.fatal(f"The run directory cannot be used ({error}); name another in $NEXUS_RUN_DIR.")
        sys.exit(2)
    log.info("gateway starting", extra={"pid": os.getpid(), "run_dir": run_dir.path})


def _check_scratch(directory: str | None) -> None:
    """gunicorn makes a file for each worker, which shows that it lives."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        where = directory or "any temporary directory"
        raise RunDirectoryError(
            f"No file can be made in {where} ({error.strerror}); name a directory with --worker-tmp-dir or $TMPDIR."
        ) from error


def post_fork(server: Any, worker: Any) -> None:
    """Take a slot for the new worker. Without one it still serves, and counts in its own memory."""
    try:
        for sibling in getattr(server, "leaving", {}).values():
            sibling.tmp.close()  # as gunicorn does with those that it knows of
        claim: LockFile = server.nexus_claim
        # The lock is shared with the master over the fork; a worker that outlives its master must not keep it.
        claim.close()
        generation: Generation = server.nexus_generation
        SlotLease.lease(generation, nth=worker.age).export_to(os.environ)
    except (NoFreeSlotError, OSError, AttributeError) as error:
        log.error("worker has no slot", extra={"pid": worker.pid, "why": error})
    worker.nexus_notifier = getattr(server, "nexus_notifier", None)


def post_worker_init(worker: Any) -> None:
    """The application is loaded: tell the service manager when it can serve, and count what never reaches it."""
    _count_unreadable_heads(worker)
    _end_viewers_with(worker)
    if worker.nexus_notifier:
        # Under gevent's patch this is a greenlet, which first runs when the worker's loop does.
        threading.Thread(target=_tell_when_ready, args=(worker,), name="ready", daemon=True).start()


def worker_exit(_server: Any, worker: Any) -> None:
    """In the worker, as the last thing: a worker that ends as it was told to is not counted as one that died."""
    ended = sys.exc_info()[1]
    if isinstance(ended, SystemExit) and not ended.code:
        with contextlib.suppress(
            AttributeError, KeyError, TypeError
        ):  # it never had an application
            worker.wsgi.extensions["nexus"].slot_lease.row.mark_departed()


def on_reload(server: Any) -> None:
    """HUP: the workers are about to be replaced; the first new one says that this is over."""
    if notifier := getattr(server, "nexus_notifier", None):
        notifier.reloading()


def _tell_when_ready(worker: Any) -> None:
    """A worker serves once it has seen a fleet. Each one says so; the manager acts on the first."""
    try:
        fleet = worker.wsgi.extensions["nexus"].engine.fleet
        while fleet.snapshot() is None:
            worker.nexus_notifier.status("Waiting for the health process to publish the fleet.")
            time.sleep(_LOOK_EVERY_S)
        worker.nexus_notifier.ready("Serving.")
    except (AttributeError, KeyError) as error:
        log.error("the service manager is not told that the gateway is ready", extra={"why": error})


def _count_unreadable_heads(worker: Any) -> None:
    """Requests whose head gunicorn could not parse never reach the application."""
    try:
        recorder = worker.wsgi.extensions["nexus"].recorder
        answer_error = worker.handle_error

        def handle_error(req: Any, client: Any, addr: Any, exc: BaseException) -> None:
            recorder.rejected("bad_request")
            answer_error(req, client, addr, exc)

        worker.handle_error = handle_error
    except (AttributeError, KeyError) as error:
        log.error("requests with an unreadable head are not counted", extra={"why": error})


def _end_viewers_with(worker: Any) -> None:
    """The dashboard's viewers do not hold up the end of a worker."""
    try:
        worker.wsgi.extensions["nexus"].live.stopping = lambda: not worker.alive
    except (AttributeError, KeyError) as error:
        log.error("the dashboard's viewers are not told of the worker's end", extra={"why": error})


def log_config(kind: str, level: str) -> dict[str, Any]:
    """gunicorn's own log, in the form of ours."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"nexus": {"()": "nexus.runtime.log.make_formatter", "kind": kind}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "nexus",
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"level": "WARNING", "handlers": []},
        "loggers": {
            "gunicorn.error": {"level": level.upper(), "handlers": ["stderr"], "propagate": False},
            "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": False},
        },
    }
