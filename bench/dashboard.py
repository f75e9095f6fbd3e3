"""What fifty open dashboards cost a worker, and what they do to the requests beside them: `make bench-dashboard`.

One worker under a steady load, with viewers and without in turns; processor time is the worker's own.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.processes import Demo, Gateway, backend_toml

VIEWERS, REPEATS, SECONDS, RATE = 50, 4, 5.0, 100
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
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        took.append((time.perf_counter() - began) * 1000)
        due += 1 / RATE
    connection.close()
    return took


def main() -> None:
    found: dict[int, list[tuple[float, float, float]]] = {0: [], VIEWERS: []}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Demo(directory, pace=0) as demo, Gateway(directory, backend_toml(demo), workers=1) as gateway:
            (worker,) = gateway.worker_pids()
            load(gateway.port)
            for _ in range(REPEATS):
                for viewers, measured in found.items():
                    command = ["curl", "-sN", "-o", "/dev/null", f"{gateway.base}/v1/live"]
                    open_ones = [subprocess.Popen(command) for _ in range(viewers)]
                    time.sleep(2)
                    before = cpu_s(worker)
                    took = sorted(load(gateway.port))
                    share = (cpu_s(worker) - before) / SECONDS
                    measured.append((share, statistics.median(took), took[int(0.99 * len(took))]))
                    for one in open_ones:
                        one.terminate()
                        one.wait()
    rows = [
        (viewers, *(statistics.median(column) for column in zip(*measured, strict=True)))
        for viewers, measured in found.items()
    ]
    more = rows[1][1] - rows[0][1]
    text = [
        "# Fifty open dashboards",
        "",
        f"`make bench-dashboard`: one worker at {RATE} requests/s, {REPEATS} repeats of {SECONDS:.0f} s in turns, medians.",
        "",
        "| viewers | the worker's core | median | 99th percentile |",
        "|---|---|---|---|",
        *(f"| {n} | {share:.1%} | {p50:.2f} ms | {p99:.2f} ms |" for n, share, p50, p99 in rows),
        "",
        f"{VIEWERS} viewers take {more:.1%} of a core.",
        "",
    ]
    RESULT.write_text("\n".join(text))
    sys.stdout.write("\n".join(text))


if __name__ == "__main__":
    main()
