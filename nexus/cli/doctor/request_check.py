"""One request through a gateway of the doctor's own must move exactly the right series."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nexus.cli.doctor.findings import Finding, fail, ok
from nexus.cli.http_client import NoResponse, http_request
from nexus.cli.samples import parse

_TIMEOUT_S = 20.0
_REQUEST = {
    "model": "demo-large",
    "messages": [{"role": "user", "content": "Is all well?"}],
    "max_tokens": 3,
}
_MOVED = {
    'nexus_requests_total{backend="demo_1",model="demo_large",status="200"}': 1,
    'nexus_request_duration_seconds_count{backend="demo_1",model="demo_large"}': 1,
    'nexus_requests_started_total{endpoint="chat_completions"}': 1,
    'nexus_upstream_attempts_total{backend="demo_1",outcome="ok"}': 1,
}
"""Series → by how much the request moves it. No other series of these families may move."""
_UNMOVED = (
    "nexus_errors_total",
    "nexus_fallbacks_total",
    "nexus_retries_total",
    "nexus_requests_lost_total",
)


def request() -> Finding:
    """Start a gateway with its demo fleet in a scratch directory, and send it one request."""
    try:
        directory = tempfile.TemporaryDirectory(prefix="nexus-doctor-")
    except OSError as error:
        return fail(
            "request",
            f"There is no place for a gateway of the doctor's own ({error.strerror}).",
            "set $TMPDIR to a directory that this user may write to",
        )
    with directory as scratch:
        port, operations = _free_ports()
        environ = {key: value for key, value in os.environ.items() if not key.startswith("NEXUS_")}
        environ |= {
            "NEXUS_HOST": "127.0.0.1",
            "NEXUS_PORT": str(port),
            "NEXUS_HEALTH_LISTEN": f"127.0.0.1:{operations}",
            "NEXUS_RUN_DIR": f"{scratch}/run",
            "NEXUS_WORKERS": "2",
        }
        log = Path(scratch) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "nexus", "serve"],
                cwd=scratch,
                env=environ,
                stdout=output,
                stderr=output,
            )
        try:
            return _send_request(f"http://127.0.0.1:{port}", process)
        except (NoResponse, TimeoutError) as why:
            lines = log.read_text(errors="replace").strip().splitlines()
            said = f"; its last line: {lines[-1]}" if lines else ""
            return fail(
                "request",
                f"A gateway of the doctor's own did not serve ({why}){said}",
                "see its last line",
            )
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _send_request(base: str, process: subprocess.Popen[bytes]) -> Finding:
    def ready() -> bool:
        if process.poll() is not None:
            raise NoResponse(f"it ended with exit status {process.returncode}")
        try:
            # /readyz needs any backend; this waits for the one that serves the model.
            return http_request("GET", f"{base}/v1/models/{_REQUEST['model']}").status == 200
        except NoResponse:
            return False

    _wait_until(ready, "it was not ready in time")
    before = _series(base)
    response = http_request(
        "POST",
        f"{base}/v1/chat/completions",
        body=json.dumps(_REQUEST).encode(),
        headers={"content-type": "application/json"},
        timeout_s=_TIMEOUT_S,
    )
    if response.status != 200:
        return fail(
            "request",
            f"A request through a demo backend failed: {response.message()}",
            "see the error",
        )
    _wait_until(
        lambda: (
            _total(_series(base), "nexus_requests_total") > _total(before, "nexus_requests_total")
        ),
        "not counted",
    )
    after = _series(base)
    families = (*{name.partition("{")[0] for name in _MOVED}, *_UNMOVED)
    moved = {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if name.partition("{")[0] in families and value != before.get(name, 0)
    }
    if moved != _MOVED:
        wrong = ", ".join(
            f"{name} by {amount:g}"
            for name, amount in sorted(set(moved.items()) ^ set(_MOVED.items()))
        )
        return fail(
            "request",
            f"A request moved other series than it should: {wrong}",
            "please report this as a defect",
        )
    return ok("request", f"one through a demo backend moved exactly its {len(_MOVED)} series")


def _series(base: str) -> dict[str, float]:
    """Every sample of a scrape, with its labels sorted by name."""
    series = {}
    for sample in parse(http_request("GET", f"{base}/metrics").content.decode()):
        labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
        series[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return series


def _total(series: dict[str, float], family: str) -> float:
    return sum(value for name, value in series.items() if name.partition("{")[0] == family)


def _wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.05)


def _free_ports() -> list[int]:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        return [sock.getsockname()[1] for sock in (one, other)]
