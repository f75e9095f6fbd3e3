"""The end of a month in Europe/Berlin, after the end of summer time, in a running gateway."""

import itertools
import json
import os
import signal
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from tests.access.test_usage import money, reported
from tests.server.asking import GOOD, ask
from tests.support.clock import Clock
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

NANO = 10**9
COST = NANO // 10
BERLIN = ZoneInfo("Europe/Berlin")
MIDNIGHT = datetime(2026, 11, 1, tzinfo=BERLIN)  # 23:00 UTC; in summer time it would be 22:00
NEXT = datetime(2026, 12, 1, tzinfo=BERLIN)
CONFIG = """
[costs]
persist_seconds = 0.2
[[costs.price]]
per_request = "0.1"
[[budgets]]
name = "month"
usd = "100"
timezone = "Europe/Berlin"
"""


def state(gateway) -> tuple[int, float]:
    """What is spent in nano-dollars, and when it resets."""
    found = gateway.scrape()
    labels = {"budget": "month", "subject": ""}
    spent = found.value("nexus_budget_spent_usd", **labels)
    return round(spent * NANO), found.value("nexus_budget_resets_timestamp_seconds", **labels)


def send(gateway, count: int = 1) -> None:
    for _ in range(count):
        assert ask(gateway, body=json.dumps(GOOD).encode()).status == 200
    gateway.settled()


def windows(directory) -> list[tuple[int, int]]:
    """The end of each window in the ledger, and what was spent in it."""
    with closing(
        sqlite3.connect(f"file:{directory}/state/ledger.sqlite?mode=ro", uri=True)
    ) as file:
        return file.execute('SELECT "end", spent FROM windows ORDER BY "end"').fetchall()


class Sender(threading.Thread):
    """Sends requests until it is stopped; it notes the time before and after each."""

    def __init__(self, gateway, clock: Clock) -> None:
        super().__init__()
        self._gateway, self._clock = gateway, clock
        self._over = threading.Event()
        self.sent: list[tuple[float, float]] = []

    def run(self) -> None:
        while not self._over.is_set():
            before = self._clock.now()
            send(self._gateway)
            self.sent.append((before, self._clock.now()))

    def stop(self) -> None:
        self._over.set()
        self.join()


def test_one_reset_at_local_midnight(tmp_path):
    clock = Clock(tmp_path, MIDNIGHT - timedelta(days=10))
    midnight, server = MIDNIGHT.timestamp(), f'state_dir = "{tmp_path}/state"'
    with (
        Demo(tmp_path, models=["demo-small"], pace=0) as demo,
        Gateway(
            tmp_path, CONFIG + backend_toml(demo), server=server, environ=clock.environ
        ) as gateway,
    ):
        until(lambda: ask(gateway).status == 200)
        gateway.settled()
        spent = COST
        for at in (
            datetime(2026, 10, 25, 0, 59, 59, tzinfo=UTC),  # the clock goes back
            datetime(2026, 10, 31, 21, 59, 59, tzinfo=UTC),  # midnight, if it were still summer
        ):
            clock.set(at)
            send(gateway)
            until(lambda at=at: clock.now() > at.timestamp() + 1.5)
            send(gateway)
            spent += 2 * COST
            assert state(gateway) == (spent, midnight)

        seen, sender = [state(gateway)], Sender(gateway, clock)
        sender.start()
        until(lambda: sender.sent)
        clock.set(MIDNIGHT - timedelta(seconds=3))
        while clock.now() < midnight + 1 or sender.sent[-1][0] < midnight:
            seen.append(state(gateway))
        sender.stop()
        seen.append(state(gateway))
        clock.set(datetime(2026, 11, 1, 0, 0, 5, tzinfo=UTC))  # after midnight of UTC
        send(gateway)
        seen.append(state(gateway))
        pid = gateway.health_pid()
        os.kill(pid, signal.SIGKILL)
        until(lambda: gateway.health_pid() not in (None, pid))
        send(gateway)
        seen.append(state(gateway))

        resets = [one for one, _ in itertools.groupby(seen, key=lambda one: one[1])]
        assert resets == [midnight, NEXT.timestamp()]
        drops = [after < before for (before, _), (after, _) in itertools.pairwise(seen)]
        assert sum(drops) == 1
        total, last = spent + (len(sender.sent) + 2) * COST, seen[-1][0]
        surely_old = sum(after < midnight for _, after in sender.sent)
        surely_new = sum(before >= midnight for before, _ in sender.sent)
        assert surely_old > 0 < surely_new
        assert len(sender.sent) - surely_old - surely_new <= 1
        assert spent + surely_old * COST <= total - last
        assert (surely_new + 2) * COST <= last
        expected = [(midnight, total - last), (NEXT.timestamp(), last)]
        assert until(lambda: windows(tmp_path) == expected)
        [row] = until(lambda: reported(gateway, "--by", "backend"))
        assert money(row["cost_usd"]) == total
