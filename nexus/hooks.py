"""gunicorn's hooks. After the start none may raise: an exception in one ends the whole service.

The master never imports prometheus_client: a process must have its seat before the library opens files.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from nexus import log as logs
from nexus.config import ConfigError, process_config
from nexus.fleet.locks import LockFile
from nexus.fleet.rundir import Generation, RunDirectory, RunDirectoryError
from nexus.fleet.seat import NoSeatError, Seat
from nexus.supervised import end_with_parent

log = logging.getLogger("nexus.server")


def on_starting(server: Any) -> None:
    """Claim the run directory and start a generation, once for the master's life; a reload is no new generation."""
    end_with_parent()
    try:
        config = process_config()
        logs.configure(level=config.logging.level, kind=config.logging.format)
        run_dir = RunDirectory.of(config)
        where = f"{config.server.host}:{config.server.port}"
        server.nexus_claim = run_dir.claim(f"the gateway at {where} (pid {os.getpid()})")
        server.nexus_generation = run_dir.new_generation(workers=server.cfg.workers)
    except (ConfigError, RunDirectoryError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except OSError as error:
        sys.stderr.write(f"The run directory cannot be used ({error}); name another in $NEXUS_RUN_DIR.\n")
        sys.exit(2)
    log.info("gateway starting", extra={"pid": os.getpid(), "run_dir": run_dir.path})


def post_fork(server: Any, worker: Any) -> None:
    """Take a slot for the new worker. Without one it still serves, and counts in its own memory."""
    try:
        claim: LockFile = server.nexus_claim
        # The lock is shared with the master over the fork; a worker that outlives its master must not keep it.
        claim.close()
        generation: Generation = server.nexus_generation
        Seat.lease(generation).hand_over(os.environ)
    except (NoSeatError, OSError, AttributeError) as error:
        log.error("worker has no slot", extra={"pid": worker.pid, "why": error})


def post_worker_init(worker: Any) -> None:
    """Count the requests whose head gunicorn could not parse: they never reach the application. Tell the dashboard's
    viewers when the worker is to end."""
    try:
        gateway = worker.wsgi.extensions["nexus"]
        recorder = gateway.recorder
        answer_error = worker.handle_error

        def handle_error(req: Any, client: Any, addr: Any, exc: BaseException) -> None:
            recorder.rejected("bad_request")
            answer_error(req, client, addr, exc)

        worker.handle_error = handle_error
        gateway.live.stopping = lambda: not worker.alive
    except (AttributeError, KeyError) as error:
        log.error("requests with an unreadable head are not counted", extra={"why": error})


def log_config(kind: str, level: str) -> dict[str, Any]:
    """gunicorn's own log, in the form of ours."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"nexus": {"()": "nexus.log.make_formatter", "kind": kind}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "nexus", "stream": "ext://sys.stderr"}},
        "root": {"level": "WARNING", "handlers": []},
        "loggers": {
            "gunicorn.error": {"level": level.upper(), "handlers": ["stderr"], "propagate": False},
            "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": False},
        },
    }
