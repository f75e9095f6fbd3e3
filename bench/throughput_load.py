"""The load of `bench.throughput`, and what is measured of a gateway under it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from bench import rig
from bench.throughput_gateways import GATEWAYS

SECONDS = int(os.environ.get("NEXUS_BENCH_SECONDS", "3"))
REPEATS = int(os.environ.get("NEXUS_BENCH_REPEATS", "7"))
CONNECTIONS = (1, 32, 256)
CONTENT = "x" * 262
ANSWER = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m","choices":[{"index":0,"message":'
    f'{{"role":"assistant","content":"{CONTENT}"}},"logprobs":null,"finish_reason":"stop"}}],'
    '"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}'
)
LUA = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer x"
wrk.body = '{"model":"m","messages":[{"role":"user","content":"Hello, how are you today?"}]}'
"""
Run = dict[str, float]


def wrk(
    port: int,
    connections: int,
    script: Path,
    *,
    core: str = rig.LOAD_CORE,
    seconds: float = SECONDS,
) -> Run:
    """One run of wrk: requests a second, and latency in ms."""
    command = [
        "taskset",
        "-c",
        core,
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{round(seconds)}",
        "--timeout",
        "30s",
        "--latency",
        "-s",
        str(script),
    ]
    out = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/v1/chat/completions"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", out)
    if failed:
        raise RuntimeError(f"requests failed: {failed[0]}")
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}

    def latency(share: str) -> float:
        value, unit = re.search(rf"\s{share}%\s+([\d.]+)(us|ms|s)", out).groups()  # type: ignore[union-attr]
        return float(value) * scale[unit]

    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])  # type: ignore[index]
    return {"rate": rate, "median_ms": latency("50"), "p99_ms": latency("99")}


def measure(name: str, directory: Path, upstream: int, script: Path) -> dict[int, Run]:
    gateway = GATEWAYS[name](directory, upstream)
    try:
        if gateway.headers:
            own = "".join(
                f'wrk.headers["{key}"] = "{value}"\n' for key, value in gateway.headers.items()
            )
            script = directory / f"{gateway.name}.lua"
            script.write_text(LUA + own)
        wrk(gateway.port, 8, script)  # warm
        found = {}
        for connections in CONNECTIONS:
            before, began = gateway.cpu_s(), time.monotonic()
            run = wrk(gateway.port, connections, script)
            requests = run["rate"] * (time.monotonic() - began)
            run["cpu_ms"] = (gateway.cpu_s() - before) / requests * 1e6 / 1000
            run["memory_mb"] = gateway.peak_memory() / 1e6
            run["worker_mb"] = gateway.worker_peak_memory() / 1e6
            run["start_s"] = gateway.started_s
            found[connections] = run
        return found
    finally:
        gateway.stop()


def scaling(directory: Path, upstream: rig.Running, script: Path) -> dict[int, Run]:
    """One worker on one core, and two on two; the load and the backend take what is left of both
    cores."""
    found = {}
    for workers, core in ((1, "0"), (2, "0,1")):
        gateway = rig.nexus(
            directory, upstream.port, name=f"nexus-{workers}", workers=workers, core=core
        )
        try:
            wrk(gateway.port, 8, script)
            spent = [gateway.cpu_s(), upstream.cpu_s() + sum(os.times()[2:4])]
            run = found[workers] = wrk(gateway.port, 64, script, core="0,1")
            requests = run["rate"] * SECONDS
            run["gateway_us"] = (gateway.cpu_s() - spent[0]) / requests * 1e6
            run["load_us"] = (upstream.cpu_s() + sum(os.times()[2:4]) - spent[1]) / requests * 1e6
        finally:
            gateway.stop()
    return found
