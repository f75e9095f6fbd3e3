"""What thousands of models cost: a worker's stall at a new snapshot, and the health process's share
of a core.

`python -m bench.models` starts the demo backend's servers in this process, a health process of its
own, and reads snapshots as a worker does. Writes bench/results/models.md.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from msgspec.structs import replace

from nexus.config import BackendConfig, Config
from nexus.fleet.records import Backend, Model, Snapshot
from nexus.fleet.snapshot import SnapshotReader, SnapshotWriter
from nexus.proxy.fleet_view import FleetView

CASES = ((1, 20), (1, 5_000), (2, 5_000), (8, 5_000))
RESULTS = Path(__file__).parent / "results" / "models.md"
_MEASURED_S = 30.0


def fleet(
    number: int, backends: int, models: int, *, changed: int = 0, latency_ms: float = 1.0
) -> Snapshot:
    return Snapshot(
        revision=number,
        published_at=time.time(),
        config=Config(),
        backends=tuple(
            Backend(
                config=BackendConfig(name=f"b{n}", url="http://127.0.0.1:1"),
                label=f"b{n}",
                column=n,
                status="healthy",
                latency_ms=latency_ms,
                models=tuple(
                    Model(name=f"vendor/model-{n % 2}-{m}", vision=m == changed)
                    for m in range(models)
                ),
            )
            for n in range(backends)
        ),
    )


class Stalls:
    """The longest time between two moments at which other greenlets could run."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._last = time.thread_time()

    def pause(self, _: float = 0) -> None:
        now = time.thread_time()
        self.longest_s = max(self.longest_s, now - self._last)
        self._last = time.thread_time()


def stall_ms(backends: int, models: int) -> tuple[float, float]:
    """The longest stall of a worker at a snapshot with the same models, and at one in which
    every list has changed."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        writer = SnapshotWriter(Path(directory))
        view = FleetView(SnapshotReader(Path(directory)), on_change=lambda _: None)
        first = fleet(1, backends, models)
        writer.publish(first)
        view.current()
        found = []
        same = replace(first, revision=2, published_at=time.time())
        for snapshot in (same, fleet(3, backends, models, changed=models // 2)):
            best = float("inf")
            for _ in range(3 if snapshot is same else 1):
                writer.publish(replace(snapshot, revision=writer.next_revision()))
                stalls = Stalls()
                sleep, time.sleep = (
                    time.sleep,
                    stalls.pause,
                )  # the view lets others run by sleeping for no time
                try:
                    view.current()
                finally:
                    time.sleep = sleep
                stalls.pause()
                best = min(best, stalls.longest_s)
            found.append(best * 1000)
        return found[0], found[1]


@contextmanager
def server(models: int) -> Iterator[str]:
    content = json.dumps({"data": [{"id": f"vendor/model-{n}"} for n in range(models)]}).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


def health_process_share(backends: int, models: int) -> float:
    """Processor time of a health process at the default interval, as a share of a core, once it
    has settled."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory, ExitStack() as stack:
        urls = [stack.enter_context(server(models)) for _ in range(backends)]
        file = Path(directory) / "nexus.toml"
        file.write_text(
            '[health_check]\nlisten = "off"\n'
            + "".join(f'[[backends]]\nname = "b{n}"\nurl = "{url}"\n' for n, url in enumerate(urls))
        )
        environ = {**os.environ, "NEXUS_RUN_DIR": f"{directory}/run"}
        process = subprocess.Popen(
            [sys.executable, "-m", "nexus.health", "-c", str(file)],
            env=environ,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(8)
            before, started = _processor_s(process.pid), time.monotonic()
            time.sleep(_MEASURED_S)
            return (_processor_s(process.pid) - before) / (time.monotonic() - started)
        finally:
            process.terminate()
            process.wait()


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    rows = []
    for backends, models in CASES:
        same, changed = stall_ms(backends, models)
        share = health_process_share(backends, models)
        rows.append(f"| {backends} x {models:,} | {same:.2f} | {changed:.2f} | {share * 100:.1f} |")
        print(rows[-1], flush=True)
    RESULTS.write_text(
        "# Thousands of models\n\n"
        "`make bench-models`: the longest processor time for which a new snapshot keeps a "
        "worker's event loop, and the health "
        f"process's processor time over {_MEASURED_S:g} s that hold one round of probes, with "
        f"nobody looking at the "
        f"dashboard.\nPython {platform.python_version()}, {os.cpu_count()} cores.\n\n"
        "| backends x models | stall, same models (ms) | stall, a model of each changed (ms) | "
        "health process (% of a "
        "core) |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


if __name__ == "__main__":
    main()
