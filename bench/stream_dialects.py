"""What an event of a stream costs in each dialect, passed on and translated.

`make bench-streams` runs it; it writes bench/results/stream-dialects.md. Source, sink and pace are
those of `bench.streams`.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from bench import rig
from bench.machine import machine, versions
from bench.streams import CHAT, MESSAGES, PACE, RESPONSES, measure, start_source

RESULTS = Path(__file__).parent / "results" / "stream-dialects.md"
COUNT = 200
REPEATS = 3
_CHAT_ONLY, _MESSAGES_ONLY = 'dialects = ["openai"]\n', 'dialects = ["anthropic"]\n'
BASE = "chat, passed on"
CASES = {
    BASE: (CHAT, ""),
    "messages, passed on": (MESSAGES, ""),
    "messages-to-chat": (MESSAGES, _CHAT_ONLY),
    "responses-to-chat": (RESPONSES, _CHAT_ONLY),
    "chat-to-messages": (CHAT, _MESSAGES_ONLY),
}
"""Each with the path that clients ask, and the settings of the backend."""
MOST = {"messages, passed on": 1.1} | {name: 3.0 for name in CASES if "-to-" in name}
"""The goals: how many times the cost of a passed event of chat completions."""


def main() -> None:
    feeder, upstream = start_source()
    costs: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as place:
        for repeat in range(REPEATS):
            for name, (path, backend) in CASES.items():
                gateway = rig.nexus(Path(place), upstream, backend=backend)
                try:
                    found = measure(gateway, gateway.port, COUNT, path)
                finally:
                    gateway.stop()
                costs[name].append(found["cpu_us"])
                print(f"{repeat} {name:20} {found}", flush=True)
    feeder.kill()
    RESULTS.write_text(report(costs))
    print(RESULTS.read_text())


def report(costs: dict[str, list[float]]) -> str:
    base = statistics.median(costs[BASE])
    lines = [
        "# Streams by dialect",
        "",
        f"Measured by `make bench-streams` on {machine()}; {versions('gevent', 'gunicorn')}. "
        f"{COUNT} streams with {PACE} events a second each,",
        f"one gateway process on one core, source and sink on the other; {REPEATS} repeats, "
        "median (least–most).",
        "",
        "| events | CPU µs per event | × passed on, chat | goal |",
        "|---|---|---|---|",
    ]
    for name, values in costs.items():
        times = statistics.median(values) / base
        most = MOST.get(name)
        goal = "" if most is None else f"{most:g}: {'met' if times <= most else 'missed'}"
        cost = f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"
        lines.append(f"| {name} | {cost} | {times:.2f} | {goal} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
