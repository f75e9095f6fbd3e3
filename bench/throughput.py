"""Requests through one gateway on one core, beside its peers in the same run.

Run it with `make bench`; it writes bench/results/throughput.md and throughput.svg. Load (wrk) and a
static upstream (nginx) share the other core; each gateway gets the same request and gives the same
answer.
"""

from __future__ import annotations

import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import rig
from bench.machine import machine, python_build, versions
from nexus.access.keys import digest

RESULTS = Path(__file__).parent / "results" / "throughput.md"
PICTURE = RESULTS.with_suffix(".svg")
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


def litellm(directory: Path, upstream: int) -> rig.Running:
    program = rig.peer("litellm", "litellm[proxy]==1.106.12")
    port = rig.free_port()
    file = directory / "litellm.yaml"
    file.write_text(
        "model_list:\n- model_name: m\n  litellm_params:\n    model: openai/m\n"
        f"    api_base: http://127.0.0.1:{upstream}/v1\n    api_key: x\n"
    )
    command = [
        str(program),
        "--config",
        str(file),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    key = f"sk-{secrets.token_hex(32)}"  # it does not start without one
    running = rig.start(
        "litellm",
        command,
        port,
        directory,
        core=rig.GATEWAY_CORE,
        ready="/health/liveliness",
        LITELLM_MASTER_KEY=key,
    )
    running.headers = {"authorization": f"Bearer {key}"}
    return running


def portkey(directory: Path, upstream: int) -> rig.Running:
    programs = rig.npm_peer("portkey", "@portkey-ai/gateway@1.15.2")
    port = rig.free_port()
    command = ["node", str(programs / "gateway"), f"--port={port}", "--headless"]
    running = rig.start("portkey", command, port, directory, core=rig.GATEWAY_CORE, ready="/")
    running.headers = {
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
    }
    return running


def haproxy(directory: Path, upstream: int) -> rig.Running:
    port = rig.free_port()
    file = directory / "haproxy.cfg"
    file.write_text(
        "global\n nbthread 1\n maxconn 4000\ndefaults\n mode http\n timeout connect 5s\n"
        " timeout client 60s\n"
        f" timeout server 60s\nlisten up\n bind 127.0.0.1:{port}\n server s 127.0.0.1:{upstream}\n"
    )
    return rig.start(
        "haproxy", ["haproxy", "-db", "-f", str(file)], port, directory, core=rig.GATEWAY_CORE
    )


def through_flask(directory: Path, upstream: int) -> rig.Running:
    return rig.nexus(directory, upstream, name="nexus-flask", NEXUS_WITHOUT_SHORT_WAY="1")


def under_the_distribution(directory: Path, upstream: int) -> rig.Running:
    return rig.nexus(
        directory, upstream, name="nexus-distribution", python=rig.distribution_python()
    )


def without_metrics(directory: Path, upstream: int) -> rig.Running:
    return rig.nexus(
        directory, upstream, name="nexus-without-metrics", module="bench.without_metrics"
    )


KEY = f"sk-{secrets.token_hex(24)}"
LIMITED = f"""
[auth]
mode = "keys"
[[keys]]
id = "k"
sha256 = ["{digest(KEY)}"]
[[limits]]
name = "requests"
each = ["key"]
requests = "1000000/s"
[[limits]]
name = "tokens"
each = ["key"]
tokens = "10M/s"
"""
BUDGETED = f"""{LIMITED}
[[costs.price]]
input = "1"
output = "10"
[[budgets]]
name = "all"
usd = "9000000"
each = ["key"]
reserve_output = 100
"""


def limited(directory: Path, upstream: int) -> rig.Running:
    return _with_key(directory, upstream, "nexus-limited", LIMITED)


def budgeted(directory: Path, upstream: int) -> rig.Running:
    return _with_key(directory, upstream, "nexus-budgeted", BUDGETED)


def _with_key(directory: Path, upstream: int, name: str, sections: str) -> rig.Running:
    running = rig.nexus(directory, upstream, name=name, sections=sections)
    running.headers = {"authorization": f"Bearer {KEY}"}
    return running


PLAIN, LIMITS = "Nexus", "Nexus, key, two limits"
BUDGET = "Nexus, key, two limits, budget"
GATEWAYS: dict[str, Callable[[Path, int], rig.Running]] = {
    "nginx": rig.nginx_proxy,
    "haproxy": haproxy,
    "vLLM router, round_robin": partial(rig.vllm_router, policy="round_robin"),
    "vLLM router, cache_aware": rig.vllm_router,
    "SGLang router, round_robin": partial(rig.sglang_router, policy="round_robin"),
    "SGLang router, cache_aware": rig.sglang_router,
    "LiteLLM": litellm,
    "Portkey": portkey,
    PLAIN: rig.nexus,
    "Nexus, distribution's Python": under_the_distribution,
    LIMITS: limited,
    BUDGET: budgeted,
    "Nexus through Flask": through_flask,
    "Nexus without metrics": without_metrics,
}


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


def main() -> None:
    results: dict[str, list[dict[int, Run]]] = {}
    missing: dict[str, str] = {}
    scaled: list[dict[int, Run]] = []
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        script = directory / "post.lua"
        script.write_text(LUA)
        upstream = rig.nginx_static(directory, ANSWER)
        try:
            for repeat in range(REPEATS):
                direct = {
                    connections: wrk(upstream.port, connections, script)
                    for connections in CONNECTIONS
                }
                results.setdefault("direct", []).append(direct)
                for name in GATEWAYS:
                    if name in missing:
                        continue
                    try:
                        found = measure(name, directory, upstream.port, script)
                    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                        missing[name] = str(error).strip().splitlines()[-1][:200]
                        print(f"{name} is left out: {missing[name]}", flush=True)
                        continue
                    results.setdefault(name, []).append(found)
                    print(f"{repeat} {name:20} {found}", flush=True)
                scaled.append(scaling(directory, upstream, script))
                print(f"{repeat} scaling {scaled[-1]}", flush=True)
        finally:
            upstream.stop()
    RESULTS.write_text(report(results, missing, scaled))
    PICTURE.write_text(picture(results))
    print(RESULTS.read_text())


CHEAPEST, DEFAULT = "vLLM router, round_robin", "vLLM router, cache_aware"
DISTRIBUTION = "Nexus, distribution's Python"


def ratios(results: dict[str, list[dict[int, Run]]]) -> list[str]:
    """Requests per second of Nexus to each router's, by policy, Python and number of
    connections."""
    rows = []
    for router in (name for name in results if "router" in name):
        for ours in (name for name in (PLAIN, DISTRIBUTION, BUDGET) if name in results):
            cells = [
                f"{median(results, ours, n, 'rate') / median(results, router, n, 'rate'):.2f} ×"
                for n in CONNECTIONS
            ]
            rows.append(f"| {ours} | {router} | {' | '.join(cells)} |")
    header = " | ".join(f"at {n}" for n in CONNECTIONS)
    return [
        f"| requests/s of | to those of | {header} |",
        "|---|---|" + "---|" * len(CONNECTIONS),
        *rows,
    ]


def goals(results: dict[str, list[dict[int, Run]]]) -> list[str]:
    """What was aimed at, beside what was measured; against the vLLM router at its cheapest
    policy."""
    of = partial(median, results)
    rows: list[tuple[str, str, str, bool]] = []
    for ours in (name for name in (PLAIN, DISTRIBUTION) if name in results):
        for what, key, least in (
            ("requests/s", "rate", True),
            ("median", "median_ms", False),
            ("p99", "p99_ms", False),
        ):
            ratio = of(ours, 32, key) / of(CHEAPEST, 32, key)
            goal = "at least 1" if least else "at most 1"
            rows.append(
                (
                    f"{ours}: {what} at 32 to {CHEAPEST}",
                    f"{ratio:.2f} ×",
                    goal,
                    ratio >= 1 if least else ratio <= 1,
                )
            )
    added = {
        name: of(name, 1, "median_ms") - of("direct", 1, "median_ms")
        for name in ("Nexus", CHEAPEST)
    }
    rows += [
        (
            "added at one connection, median",
            f"{added['Nexus']:.3f} ms",
            f"at most the vLLM router's {added[CHEAPEST]:.3f}",
            added["Nexus"] <= added[CHEAPEST],
        ),
        (
            "peak memory of a worker",
            f"{of('Nexus', 256, 'worker_mb'):.0f} MB",
            "under 60",
            of("Nexus", 256, "worker_mb") < 60,
        ),
    ]
    if "LiteLLM" in results:
        times = of("Nexus through Flask", 32, "rate") / of("LiteLLM", 32, "rate")
        rows.append(
            (
                "through Flask at 32, to LiteLLM's requests/s",
                f"{times:.1f} ×",
                "at least 10",
                times >= 10,
            )
        )
    table = [
        f"| {what} | {found} | {goal} | {'met' if met else '**missed**'} |"
        for what, found, goal, met in rows
    ]
    return ["| goal | measured | wanted | |", "|---|---|---|---|", *table]


def distribution() -> str:
    """The distribution's Python as the report names it."""
    try:
        return python_build(rig.system_python())
    except RuntimeError as error:
        return f"nothing else ({error})"


def median(
    results: dict[str, list[dict[int, Run]]], name: str, connections: int, key: str
) -> float:
    return statistics.median(run[connections][key] for run in results[name])


def report(
    results: dict[str, list[dict[int, Run]]], missing: dict[str, str], scaled: list[dict[int, Run]]
) -> str:
    lines = [
        "# Throughput",
        "",
        f"Measured by `make bench` on {machine()}; "
        f"{versions('gevent', 'gunicorn', 'httptools', 'msgspec')}; vLLM router 0.1.17,",
        "SGLang router 0.3.2, LiteLLM 1.106.12, Portkey 1.15.2. *Nexus* runs under the Python "
        "above, *Nexus, distribution's Python*",
        f"under {distribution()}. The two routers run at `--policy round_robin`, their cheapest "
        f"policy, and at `cache_aware`,",
        "their default, which looks up the prompt's prefix for each request; Nexus runs with its "
        "defaults.",
        "Each gateway is one process on one core (Nexus: one worker, with its master, supervisor "
        "and health process on the same",
        f"core); wrk and a static nginx as backend share the other. The same request and a "
        f"response of {len(ANSWER)} bytes for all;",
        f"{REPEATS} interleaved rounds of {SECONDS} s each, medians (least–most).",
        "",
        "![requests a second](throughput.svg)",
        "",
        f"| gateway | {' | '.join(f'requests/s at {n}' for n in CONNECTIONS)} | median ms at 1 | "
        f"median, p99 ms at 32 | CPU s per 1,000 at 32 | peak memory MB | start s |",
        "|---|" + "---|" * (len(CONNECTIONS) + 5),
    ]
    for name, runs in results.items():
        rates = []
        for connections in CONNECTIONS:
            values = [run[connections]["rate"] for run in runs]
            rates.append(
                f"{statistics.median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})"
            )
        cells = [
            *rates,
            f"{median(results, name, 1, 'median_ms'):.3f}",
            f"{median(results, name, 32, 'median_ms'):.2f}, "
            f"{median(results, name, 32, 'p99_ms'):.2f}",
        ]
        if name == "direct":
            cells += ["", "", ""]
        else:
            cells += [
                f"{median(results, name, 32, 'cpu_ms'):.3f}",
                f"{median(results, name, 256, 'memory_mb'):.0f}",
                f"{median(results, name, 1, 'start_s'):.1f}",
            ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    lines += [*ratios(results), ""]
    if CHEAPEST in results:
        lines += [*goals(results), ""]
    of = partial(median, results)
    for name in ("LiteLLM", "Portkey"):
        if name in results:
            ratio = of("Nexus", 32, "rate") / of(name, 32, "rate")
            lines.append(
                f"- At 32 connections Nexus serves {ratio:.{1 if ratio > 5 else 2}f} × {name}'s "
                f"requests."
            )
    if "Nexus without metrics" in results:
        cost_us = (of("Nexus", 32, "cpu_ms") - of("Nexus without metrics", 32, "cpu_ms")) * 1000
        lines.append(
            f"- Metrics cost {cost_us:.0f} µs of a request's processor time (*Nexus* less *Nexus "
            f"without metrics*)."
        )
    for what, more, less in (
        ("A key and two limits take", LIMITS, PLAIN),
        ("A hard budget takes", BUDGET, LIMITS),
    ):
        if more in results:
            cost_us = (of(more, 32, "cpu_ms") - of(less, 32, "cpu_ms")) * 1000
            lines.append(
                f"- {what} {cost_us:.0f} µs of a request's processor time (*{more}* less *{less}*)."
            )
    one, two = (
        {key: statistics.median(run[n][key] for run in scaled) for key in scaled[0][n]}
        for n in (1, 2)
    )
    alone_us, load_us = one["gateway_us"], one["load_us"]
    lines.append(
        f"- Two workers on two cores serve {two['rate'] / one['rate']:.2f} × the requests of one "
        f"on one: {two['rate']:,.0f} to "
        f"{one['rate']:,.0f}. The load and the backend take {load_us:.0f} µs a request of the "
        f"same two cores, the gateway "
        f"{alone_us:.0f}, so that at most {2 * max(alone_us, load_us) / (alone_us + load_us):.2f} "
        f"× can come of it here: what is "
        "left for the load decides, not the workers, which share nothing that they wait for."
    )
    lines += [f"- {name} is left out: {why}" for name, why in missing.items()]
    return "\n".join([*lines, ""])


def picture(results: dict[str, list[dict[int, Run]]]) -> str:
    """Bars of the requests a second at 32 connections, without those of no gateway at all."""
    bars = [
        (name, median(results, name, 32, "rate"))
        for name in results
        if name not in ("direct", "nginx", "haproxy", "Nexus without metrics")
    ]
    bars.sort(key=lambda bar: -bar[1])
    most, height = max(rate for _, rate in bars), 30
    rows = [
        f'<text x="230" y="{n * height + 20}" text-anchor="end">{name}</text>'
        f'<rect x="240" y="{n * height + 6}" width="{rate / most * 340:.0f}" height="20" '
        f'fill="{"#2563eb" if name.startswith("Nexus") else "#94a3b8"}"/>'
        f'<text x="{rate / most * 340 + 248:.0f}" y="{n * height + 20}">{rate:,.0f}</text>'
        for n, (name, rate) in enumerate(bars)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 {len(bars) * height + 30}" '
        f'font-family="sans-serif" font-size="14">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(rows)}'
        f'<text x="240" y="{len(bars) * height + 22}" fill="#475569">requests per second on one '
        f"core, 32 connections; routers with their policy</text></svg>\n"
    )


if __name__ == "__main__":
    sys.exit(main())
