"""Load by many keys, with kills at random: the sums of money by key, by backend, and in the ledger
are the same to the nano-dollar. In a run of ten minutes or more, memory does not grow.

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


def kill_until(gateway, end: float, *, spared: int, health: bool) -> int:
    """Kill workers at random, but one, and perhaps the health process; returns how many workers."""
    killed, chance = 0, random.Random(end)
    while (left := end - time.monotonic()) > 5:
        time.sleep(min(chance.uniform(1, 12), SECONDS / 10, left - 4))
        with contextlib.suppress(ProcessLookupError):  # the next one is starting
            if health and chance.random() < 0.4:
                os.kill(gateway.health_pid(), signal.SIGKILL)
        pids = [pid for pid in gateway.worker_pids() if pid != spared]
        for pid in chance.sample(pids, min(len(pids), chance.randint(1, 2))):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


def memory(pid: int) -> int:
    used = memory_and_cpu(pid)
    assert used is not None
    return used[0]


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
        start, end = time.monotonic(), time.monotonic() + SECONDS
        spared = gateway.worker_pids()[0]
        threads = [
            threading.Thread(target=send_until, args=(gateway, end, seed)) for seed in range(6)
        ]
        for thread in threads:
            thread.start()
        killed = kill_until(gateway, start + SECONDS / 2, spared=spared, health=True)
        # It was killed often, so it is restarted after a pause.
        health = until(lambda: memory(pid := gateway.health_pid()) and pid, within_s=90, every_s=1)
        killed += kill_until(gateway, start + 0.7 * SECONDS, spared=spared, health=False)
        early = {pid: memory(pid) for pid in (spared, health)}
        killed += kill_until(gateway, end, spared=spared, health=False)
        for thread in threads:
            thread.join()
        scrape = gateway.settled()
        by_key = total(scrape, "nexus_key_cost_usd_total")
        by_backend = total(scrape, "nexus_cost_usd_total", outcome="delivered")
        assert killed >= 5
        assert by_key == by_backend > 0
        assert scrape.value("nexus_cost_imbalance_usd") == 0
        rows = until(lambda: reported(gateway, "--by", "key"))
        assert sum(money(row["cost_usd"]) for row in rows) == by_backend
        # A worker that takes a killed one's place spends what that one held, once it runs.
        until(lambda: total(gateway.scrape(), "nexus_budget_held_usd") == 0)
        spent = total(gateway.scrape(), "nexus_budget_spent_usd", budget="all")
        lost = scrape.total("nexus_requests_lost_total")
        # What a killed worker held is spent. It may have counted one request and not settled it.
        assert 0 <= spent - by_backend <= (lost + killed) * MOST
        assert scrape.value("nexus_accounting_imbalance") == 0
        if SECONDS >= 600:  # before, further workers meet further subjects
            assert len(rows) > 0.9 * SUBJECTS
            for pid, before in early.items():
                assert memory(pid) < 1.1 * before + 4 * 2**20
