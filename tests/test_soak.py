"""Load for as long as one likes: no error, and no growth in memory or descriptors.

`make check-long` runs it for five minutes without keys, and for five with 2,000 keys that have
limits; NEXUS_SOAK_SECONDS sets another time.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nexus.metrics.processes import memory_and_cpu
from tests.access.limited import key_of, keys_toml
from tests.support.load import ParsedRequest, run
from tests.support.metrics import Scrape, moved
from tests.support.processes import Demo, Gateway, backend_toml
from tests.test_chaos import asks

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

SECONDS = float(os.environ.get("NEXUS_SOAK_SECONDS", "300"))
WARM_UP_S = 10
LIMITS = """
[auth]
mode = "keys"
[[limits]]
name = "each"
each = ["key"]
requests = "1M/d"
tokens = "1M/d"
parallel = 100
"""


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


def overhead_s(before: Scrape, after: Scrape, phase: str) -> str:
    """The bucket that has the 99th percentile of what the gateway added to requests."""
    changes = moved(before, after, ["nexus_gateway_overhead_seconds_bucket"])
    counts = sorted(
        (float(dict(labels)["le"]), count)
        for (_, labels), count in changes.items()
        if ("phase", phase) in labels
    )
    return next(f"{phase} <= {le:g} s" for le, count in counts if count >= 0.99 * counts[-1][1])


@pytest.mark.long
@pytest.mark.parametrize("subjects", [0, 2000])
def test_nothing_grows(tmp_path, subjects):
    keys, rng = [f"k{number}" for number in range(subjects)], random.Random(1)

    def asked(seconds: float) -> Iterator[ParsedRequest]:
        for one in asks(time.monotonic() + seconds):
            yield replace(one, key=key_of(rng.choice(keys)) if keys else None)

    with (
        Demo(tmp_path, name="a", models=["shared"], pace=0) as a,
        Demo(
            tmp_path, name="flaky", models=["flaky"], pace=0, fault="status=500,rate=0.3,seed=2"
        ) as flaky,
        Gateway(
            tmp_path,
            (LIMITS + keys_toml(*keys) if keys else "") + backend_toml(a, flaky),
            workers=2,
            interval_s=5,
        ) as gateway,
    ):
        tally: Counter[tuple[str, int]] = Counter()

        def load(seconds: float) -> None:
            def seen(ask, status: int, _: bytes) -> None:
                tally[ask.kind, status] += 1

            run(gateway.port, asked(seconds), concurrency=32, seen=seen, pause_s=0.05)

        load(WARM_UP_S)
        used = gateway.settled()
        pids = [*gateway.worker_pids(), gateway.health_pid()]
        before = sizes(pids)
        load(SECONDS)
        quiet = gateway.settled()
        after = sizes(pids)
        print(f"{subjects} keys, {sum(tally.values())} requests, p99 of the overhead:",
              *(overhead_s(used, quiet, phase) for phase in ("before", "after")))  # fmt: skip
        print(f"descriptors and bytes: {before}, then {after}")
        # Of a backend that fails three times in ten, enough may fail in a row for its circuit to
        # open for a while.
        assert {kind_status for kind_status in tally if kind_status[1] != 200} <= {
            ("flaky", 502),
            ("flaky", 503),
            ("unknown", 404),
        }
        assert quiet.total("nexus_requests_total") == sum(tally.values())
        assert quiet.value("nexus_accounting_imbalance") == 0
        # The warm-up has met few of the keys: a worker keeps the series of 500, and counters of
        # limits.
        most = (8 << 20) + subjects * (24 << 10)
        for pid in pids:
            assert after[pid][0] <= before[pid][0] + 16, (before, after)
            assert after[pid][1] <= before[pid][1] * 1.1 + most, (before, after)
