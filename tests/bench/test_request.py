"""The benchmark of one request still drives the fast path, and finds the parts that it lists."""

import subprocess
import sys

from tests.support.processes import ROOT, clean_environ


def test_every_part_is_found():
    program = (
        "from bench import request; "
        "request.REQUESTS = 50; print(len(request.PARTS) + len(request.EXTRAS)); request.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=clean_environ(), timeout=60,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    parts, *rows = done.stdout.splitlines()
    assert len(rows) == int(parts) + 6, "the rest, the sum, two forms of logs, two of affinity"
