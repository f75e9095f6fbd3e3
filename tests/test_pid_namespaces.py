"""Gateway and health process in two containers: each sees other process ids, and both use one
run directory."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.support.metrics import scrape
from tests.support.polling import until
from tests.support.processes import Demo, Process, backend_toml, clean_environ, free_port

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a namespace"),
]

APART = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


class Container(Process):
    """A command in a process id namespace of its own, which ends with it."""

    def __init__(self, *command, log, environ):
        super().__init__([*APART, sys.executable, "-m", *command], log=log, environ=environ)

    def __exit__(self, *_):
        self.stop(number=signal.SIGKILL)  # `unshare` itself heeds no other


def roles(base):
    return set(until(lambda: scrape(base).series("nexus_process_resident_memory_bytes", "role")))


def test_reload_and_metrics(tmp_path):
    port, operations = free_port(), free_port()
    file = tmp_path / "nexus.toml"
    environ = clean_environ(
        NEXUS_RUN_DIR=str(tmp_path / "run"),
        NEXUS_PORT=str(port),
        NEXUS_HOST="127.0.0.1",
        NEXUS_WORKERS="2",
        NEXUS_CONFIG=str(file),
        NEXUS_LOG_FORMAT="json",
        NEXUS_HEALTH_LISTEN=f"127.0.0.1:{operations}",
    )
    with Demo(tmp_path, name="one", pace=0) as one, Demo(tmp_path, name="two", pace=0) as two:
        file.write_text(backend_toml(one))
        gunicorn = ("gunicorn", "-c", "gunicorn.conf.py", "wsgi:app")
        with (
            Container(*gunicorn, log=tmp_path / "gateway.log", environ=environ) as gateway,
            Container("nexus.health", log=tmp_path / "health.log", environ=environ),
        ):
            base, other = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{operations}"
            until(lambda: scrape(base).value("nexus_backends_healthy") == 1, within_s=30)
            until(lambda: scrape(base).value("nexus_workers") == 2)
            file.write_text(backend_toml(one, two))
            found = subprocess.run(
                [*APART, sys.executable, "-m", "nexus", "reload"],
                capture_output=True, text=True, timeout=60, env=environ,
            )  # fmt: skip
            assert (found.returncode, found.stdout) == (0, "Reloaded: 2 backends.\n"), found.stderr
            until(lambda: scrape(base).value("nexus_backends_healthy") == 2)
            lines = [json.loads(line) for line in gateway.output().splitlines()]
            assert sum(line["event"] == "worker ready" for line in lines) == 2  # none was replaced
            assert roles(base) == {("worker",)}
            assert roles(other) == {("health",)}
