"""What fifty open dashboards cost a worker, and what they do to the requests beside them: `make
bench-dashboard`.

One worker under a steady load, with viewers and without in turns; processor time is the worker's
own. The viewers keep what they get unread in their sockets: elsewhere, where viewers are, reading
it costs this machine nothing.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import Demo, Gateway, backend_toml

VIEWERS, REPEATS, SECONDS, RATE = 50, 6, 5.0, 100
ROOM = 4 * 1024 * 1024
RESULT = Path(__file__).parent / "results" / "dashboard.md"


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(port: int) -> list[float]:
    """Milliseconds of each request, sent at a steady rate."""
    body = json.dumps({"model": "demo-small", "messages": [{"role": "user", "content": "x"}]})
    connection = http.client.HTTPConnection("127.0.0.1", port)
    took, due = [], time.monotonic()
    end = due + SECONDS
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        began = time.perf_counter()
        connection.request(
            "POST", "/v1/chat/completions", body, {"content-type": "application/json"}
        )
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        took.append((time.perf_counter() - began) * 1000)
        due += 1 / RATE
    connection.close()
    return took


def viewer(port: int) -> socket.socket:
    """An open dashboard."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
    sock.connect(("127.0.0.1", port))
    sock.sendall(b"GET /v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return sock


def shown(viewers: list[socket.socket]) -> list[int]:
    """How many states each viewer got."""
    counts = []
    for sock in viewers:
        sock.settimeout(0.01)
        got = b""
        try:
            while piece := sock.recv(ROOM):
                got += piece
        except TimeoutError:
            pass
        counts.append(got.count(b"event: tick"))
        sock.close()
    return counts


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ms ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    found: dict[int, list[tuple[float, float, float]]] = {0: [], VIEWERS: []}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with (
            Demo(directory, pace=0) as demo,
            Gateway(directory, backend_toml(demo), workers=1) as gateway,
        ):
            (worker,) = gateway.worker_pids()
            load(gateway.port)
            for _ in range(REPEATS):
                for viewers, measured in found.items():
                    open_ones = [viewer(gateway.port) for _ in range(viewers)]
                    time.sleep(2)
                    before = cpu_s(worker)
                    took = sorted(load(gateway.port))
                    share = (cpu_s(worker) - before) / SECONDS
                    measured.append((share, statistics.median(took), took[int(0.99 * len(took))]))
                    assert all(count > SECONDS for count in shown(open_ones)), (
                        "every viewer got every state"
                    )
    median = statistics.median
    (share, p50, p99), (share_with, p50_with, p99_with) = (
        list(zip(*of, strict=True)) for of in found.values()
    )
    moved, swing = median(p99_with) - median(p99), max(p99) - min(p99)
    text = [
        "# Fifty open dashboards",
        "",
        f"`make bench-dashboard`: one worker at {RATE} requests/s, {REPEATS} repeats of "
        f"{SECONDS:.0f} s in turns; medians,",
        "and the least and the most of the repeats.",
        "",
        "| viewers | the worker's core | median | 99th percentile |",
        "|---|---|---|---|",
        f"| 0 | {median(share):.1%} | {median(p50):.2f} ms | {spread(p99)} |",
        f"| {VIEWERS} | {median(share_with):.1%} | {median(p50_with):.2f} ms | {spread(p99_with)} "
        f"|",
        "",
        f"{VIEWERS} viewers take {median(share_with) - median(share):.1%} of a core. They move "
        f"the 99th percentile by"
        f" {moved:+.2f} ms, where it swings by {swing:.2f} ms without them.",
        "",
    ]
    RESULT.write_text("\n".join(text))
    sys.stdout.write("\n".join(text))


if __name__ == "__main__":
    main()
