"""Load for as long as one likes: no error, and no growth in memory or descriptors.

`make check-long` runs it for five minutes; NEXUS_SOAK_SECONDS sets another time.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from nexus.metrics.processes import memory_and_cpu
from tests.support.load import run
from tests.support.processes import Demo, Gateway, backend_toml
from tests.test_chaos import asks

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

SECONDS = float(os.environ.get("NEXUS_SOAK_SECONDS", "300"))
WARM_UP_S = 10


def sizes(pids: list[int]) -> dict[int, tuple[int, int]]:
    """Open descriptors and resident bytes of each process."""
    found = {}
    for pid in pids:
        used = memory_and_cpu(pid)
        assert used is not None
        found[pid] = len(list(Path(f"/proc/{pid}/fd").iterdir())), used[0]
    return found


def test_a_short_soak():
    """Four workers at 80 % of what they can do: no error, no growth."""
    soak = subprocess.run(
        [sys.executable, "-m", "bench.soak", "8"], capture_output=True, text=True, timeout=120
    )
    assert soak.stdout.splitlines()[-1:] == ["no error, no growth"], soak.stdout + soak.stderr
    assert soak.returncode == 0


@pytest.mark.long
def test_nothing_grows(tmp_path):
    with (
        Demo(tmp_path, name="a", models=["shared"], pace=0) as a,
        Demo(
            tmp_path, name="flaky", models=["flaky"], pace=0, fault="status=500,rate=0.3,seed=2"
        ) as flaky,
        Gateway(tmp_path, backend_toml(a, flaky), workers=2) as gateway,
    ):
        tally: Counter[tuple[str, int]] = Counter()

        def load(seconds: float) -> None:
            def seen(ask, status: int, _: bytes) -> None:
                tally[ask.kind, status] += 1

            run(
                gateway.port,
                asks(time.monotonic() + seconds),
                concurrency=32,
                seen=seen,
                pause_s=0.05,
            )

        load(WARM_UP_S)
        gateway.settled()
        pids = [*gateway.worker_pids(), gateway.health_pid()]
        before = sizes(pids)
        load(SECONDS)
        quiet = gateway.settled()
        after = sizes(pids)
        # Of a backend that fails three times in ten, enough may fail in a row for its circuit to
        # open for a while.
        assert set(tally) <= {
            ("chat", 200),
            ("stream", 200),
            ("embeddings", 200),
            ("flaky", 200),
            ("flaky", 502),
            ("flaky", 503),
            ("unknown", 404),
        }
        assert quiet.total("nexus_requests_total") == sum(tally.values())
        assert quiet.value("nexus_accounting_imbalance") == 0
        for pid in pids:
            assert after[pid][0] <= before[pid][0] + 16, (before, after)
            assert after[pid][1] <= before[pid][1] * 1.1 + (8 << 20), (before, after)
