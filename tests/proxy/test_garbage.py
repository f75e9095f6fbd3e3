"""Requests that ended are freed at once: none waits for the collector, with its fleet."""

import json
import os
import signal

import pytest

from nexus.access.keys import digest
from tests.server.asking import GOOD, ask
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

KEY = "sk-nx-of-a-test-of-garbage"
CONFIG = f"""
[auth]
mode = "keys"
[[keys]]
id = "k"
sha256 = ["{digest(KEY)}"]
[[costs.price]]
input = "1"
[[budgets]]
name = "all"
usd = "100"
reserve_output = 10
[circuit_breaker]
enabled = false
"""
COUNT_WHEN_ASKED = """
import os, signal, sys
def count(*_):
    import gc
    names = [type(one).__name__ for one in gc.get_objects()]
    with open(os.environ["COUNTED"] + ".new", "w") as file:
        print(names.count("Exchange"), names.count("RequestFailed"), file=file)
    os.rename(file.name, os.environ["COUNTED"])
if "gunicorn" in " ".join(sys.orig_argv):
    signal.signal(signal.SIGRTMIN, count)
"""


@pytest.mark.parametrize("fault", ["", "status=500", "break_after=2", "status=400"])
def test_no_request_is_left(tmp_path, fault):
    (tmp_path / "sitecustomize.py").write_text(COUNT_WHEN_ASKED)
    counted = tmp_path / "counted"
    environ = {"PYTHONPATH": str(tmp_path), "COUNTED": str(counted)}
    server = f'state_dir = "{tmp_path}/state"'
    with (
        Demo(tmp_path, models=["demo-small"], pace=0, fault=fault or "no_usage") as demo,
        Gateway(
            tmp_path, CONFIG + backend_toml(demo), workers=1, server=server, environ=environ
        ) as gateway,
    ):
        until(lambda: gateway.scrape().value("nexus_backends_healthy") == 1)
        for stream in (False, True) * 10:
            body = json.dumps({**GOOD, "stream": stream}).encode()
            ask(gateway, body=body, authorization=f"Bearer {KEY}")
        gateway.settled()
        [pid] = gateway.worker_pids()
        os.kill(pid, signal.SIGRTMIN)
        assert until(lambda: counted.exists() and counted.read_text()) == "0 0\n"
