"""Four workers at 80 % of what they can do, for as long as one likes: no error, no growth in memory
or descriptors.

Run it with `make soak`, or `python -m bench.soak SECONDS`; it ends with 1 and a sentence where
something is wrong. Load (wrk) and a static upstream (nginx) share the machine's cores with the
gateway.
"""

from __future__ import annotations

import sys
import tempfile
import urllib.request
from pathlib import Path

from bench import rig, throughput_load

WORKERS = 4
CONNECTIONS = 64
SHARE = 0.8
SEGMENTS = 16
"""So many looks are taken, a second apart at least."""
GROWTH = 4 << 20
"""Bytes by which a process's memory may be larger in the last quarter than in the second."""
MORE_DESCRIPTORS = 2 * CONNECTIONS
"""Descriptors that a process may have more: how connections spread over the workers is the
kernel's choice."""
CORES = "0,1"


def wrk(port: int, directory: Path, *, pause_ms: float, seconds: float) -> float:
    """Requests a second of one run, each connection pausing after each answer. Raises
    RuntimeError for any error."""
    script = directory / "soak.lua"
    script.write_text(
        throughput_load.LUA
        + f"function delay() return {int(pause_ms)} + (math.random() < {pause_ms % 1} and 1 or 0) "
        f"end\n"
    )
    return throughput_load.wrk(port, CONNECTIONS, script, core=CORES, seconds=seconds)["rate"]


def sizes(gateway: rig.Running) -> dict[int, tuple[int, int]]:
    """Resident bytes and open descriptors of each process."""
    return {
        pid: (rig.status_kib(pid, "VmRSS") * 1024, len(list(Path(f"/proc/{pid}/fd").iterdir())))
        for pid in gateway.tree()
    }


def metrics(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode().splitlines()


def figure(port: int, name: str) -> float:
    lines = [line for line in metrics(port) if line.startswith((name + "{", name + " "))]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def soak(directory: Path, seconds: float) -> list[str]:
    """What was found wrong."""
    upstream = rig.nginx_static(directory, throughput_load.ANSWER)
    gateway = rig.nexus(directory, upstream.port, workers=WORKERS, core=CORES)
    try:
        segments = max(1, min(SEGMENTS, int(seconds)))
        most = wrk(gateway.port, directory, pause_ms=0, seconds=max(2, seconds / segments))
        wanted = SHARE * most
        print(f"{most:,.0f} requests/s at most, {wanted:,.0f} wanted", flush=True)
        pause_ms = 1000 * CONNECTIONS * (1 / wanted - 1 / most)
        seen = []
        for _ in range(segments):
            rate = wrk(gateway.port, directory, pause_ms=pause_ms, seconds=seconds / segments)
            seen.append(sizes(gateway))
            memory = sum(size for size, _ in seen[-1].values()) / 1e6
            print(f"{rate:,.0f} requests/s ({rate / most:.0%}), {memory:.1f} MB, ", end="")
            print(f"{sum(opened for _, opened in seen[-1].values())} descriptors", flush=True)
            pause_ms = max(0.0, pause_ms + 1000 * CONNECTIONS * (1 / wanted - 1 / rate))
        # A run of wrk ends in the middle of its requests: those are clients that left, and nothing
        # else may fail.
        failed = figure(gateway.port, "nexus_errors_total")
        print(f"{failed:.0f} clients left at the ends of runs", flush=True)
        wrong = []
        if failed > CONNECTIONS * (segments + 1):
            kinds = [
                line for line in metrics(gateway.port) if line.startswith("nexus_errors_total{")
            ]
            wrong.append(f"{failed:.0f} requests failed: {', '.join(kinds)}")
        if imbalance := figure(gateway.port, "nexus_accounting_imbalance"):
            wrong.append(f"the figures are out of balance by {imbalance:.0f}")
        return wrong + grown(seen)
    finally:
        gateway.stop()
        upstream.stop()


def grown(seen: list[dict[int, tuple[int, int]]]) -> list[str]:
    """Which processes have grown between the second quarter and the last, or are others than at
    the beginning."""
    quarter = len(seen) // 4
    if any(found.keys() != seen[0].keys() for found in seen):
        return ["a process ended, or was started anew"]
    wrong = []
    for pid in seen[0]:
        for what, at, most in (("bytes", 0, GROWTH), ("descriptors", 1, MORE_DESCRIPTORS)):
            before = max(found[pid][at] for found in seen[quarter : 2 * quarter])
            after = max(found[pid][at] for found in seen[-quarter:])
            if after > before + most:
                wrong.append(f"process {pid} grew from {before:,} to {after:,} {what}")
    return wrong


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        wrong = soak(Path(place), float(sys.argv[1]) if len(sys.argv) > 1 else 600)
    print("; ".join(wrong) or "no error, no growth")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
