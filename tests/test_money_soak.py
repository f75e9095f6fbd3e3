"""Load by many keys, with kills: the sums of money by key, by backend, and in the ledger agree.

`make check-long` runs it for five minutes; NEXUS_SOAK_SECONDS sets another time.
"""

import contextlib
import json
import os
import random
import signal
import threading
import time

import pytest

from nexus.access.keys import digest
from nexus.metrics.processes import memory_and_cpu
from tests.access.test_usage import money, reported
from tests.server.asking import GOOD, ask
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = [pytest.mark.e2e, pytest.mark.long]

SECONDS = float(os.environ.get("NEXUS_SOAK_SECONDS", "300"))
SUBJECTS = 2000
NANO = 10**9
MOST = 10_000_000
"""What one request can cost at most, in nano-dollars."""
FAULTS = ("", "", "status=500", "break_after=2")
CONFIG = """
[auth]
mode = "keys"
[[costs.price]]
input = "12.345678"
output = "98.765432"
[[budgets]]
name = "each"
each = ["key"]
usd = "1000"
per = "hour"
reserve_output = 50
[[budgets]]
name = "all"
usd = "1000000"
per = "total"
reserve_output = 50
"""


def key_of(number: int) -> str:
    return f"sk-nx-of-a-soak-of-money-{number:04d}"


def total(scrape, family: str, **labels: str) -> int:
    wanted = set(labels.items())
    samples = scrape.samples.items()
    return sum(round(v * NANO) for (name, of), v in samples if name == family and wanted <= of)


def send_until(gateway, end: float, seed: int) -> None:
    chance = random.Random(seed)
    while time.monotonic() < end:
        body = {**GOOD, "stream": chance.random() < 0.4, "max_tokens": chance.randint(1, 20)}
        headers = {
            "content-type": "application/json",
            "authorization": f"Bearer {key_of(chance.randrange(SUBJECTS))}",
            "x-demo-fault": chance.choice(FAULTS),
        }
        try:
            ask(gateway, body=json.dumps(body).encode(), headers=headers)
        except Exception:  # a worker was killed
            time.sleep(0.01)


def kill_until(gateway, end: float) -> int:
    """Kill workers and the health process in turn; returns how many workers."""
    killed = 0
    while time.monotonic() < end - 5:
        time.sleep(min(10.0, SECONDS / 6))
        if killed % 2:
            with contextlib.suppress(ProcessLookupError):  # the next one is starting
                os.kill(gateway.health_pid(), signal.SIGKILL)
        os.kill(gateway.worker_pids()[0], signal.SIGKILL)
        killed += 1
    return killed


def test_money_adds_up_through_kills(tmp_path):
    keys = "".join(
        f'[[keys]]\nid = "k{n}"\nsha256 = ["{digest(key_of(n))}"]\n' for n in range(SUBJECTS)
    )
    with (
        Demo(tmp_path, models=["demo-small"], pace=0) as demo,
        Gateway(
            tmp_path,
            CONFIG + keys + backend_toml(demo),
            workers=4,
            server=f'state_dir = "{tmp_path}/state"',
        ) as gateway,
    ):
        end = time.monotonic() + SECONDS
        threads = [
            threading.Thread(target=send_until, args=(gateway, end, seed)) for seed in range(6)
        ]
        for thread in threads:
            thread.start()
        killed = kill_until(gateway, end)
        for thread in threads:
            thread.join()
        scrape = gateway.settled()
        by_key = total(scrape, "nexus_key_cost_usd_total")
        by_backend = total(scrape, "nexus_cost_usd_total", outcome="delivered")
        # A kill may leave one request half recorded.
        assert abs(by_key - by_backend) <= killed * MOST
        rows = until(lambda: reported(gateway, "--by", "key"))
        in_ledger = sum(money(row["cost_usd"]) for row in rows)
        assert abs(in_ledger - by_backend) <= killed * MOST
        spent = total(gateway.scrape(), "nexus_budget_spent_usd", budget="all")
        lost = scrape.total("nexus_requests_lost_total")
        assert 0 <= spent - by_backend + killed * MOST <= (lost + 2 * killed) * MOST
        assert total(gateway.scrape(), "nexus_budget_held_usd", budget="all") == 0
        assert scrape.value("nexus_accounting_imbalance") == 0
        for pid in [*gateway.worker_pids(), gateway.health_pid()]:
            used = memory_and_cpu(pid)
            assert used is not None
            assert used[0] < 300 * 2**20
