"""Requests through one gateway on one core, beside its peers in the same run.

Run it with `make bench`; it writes bench/results/throughput.md and throughput.svg. Load (wrk) and a
static upstream (nginx) share the other core; each gateway gets the same request and gives the same
answer.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from bench import rig
from bench.throughput_gateways import GATEWAYS
from bench.throughput_load import ANSWER, CONNECTIONS, LUA, REPEATS, Run, measure, scaling, wrk
from bench.throughput_report import picture, report

RESULTS = Path(__file__).parent / "results" / "throughput.md"
PICTURE = RESULTS.with_suffix(".svg")


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


if __name__ == "__main__":
    sys.exit(main())
