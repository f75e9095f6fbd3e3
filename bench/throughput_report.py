"""What `bench.throughput` writes: tables, sentences, and a picture."""

from __future__ import annotations

import statistics
from functools import partial

from bench import rig
from bench.machine import machine, python_build, versions
from bench.throughput_gateways import BUDGET, DISTRIBUTION, LIMITS, PLAIN
from bench.throughput_load import ANSWER, CONNECTIONS, REPEATS, SECONDS, Run

CHEAPEST, DEFAULT = "vLLM router, round_robin", "vLLM router, cache_aware"


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
