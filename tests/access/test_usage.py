"""The ledger of a running gateway: restarts, kills, a full disk, and reports."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from io import StringIO
from pathlib import Path

import jsonschema
import pytest

from nexus.access.keys import digest
from nexus_demo.responses import tokens_of
from tests.cli.schemas import SCHEMAS
from tests.server.asking import GOOD, ask
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, clean_environ
from tests.test_serve import alive

pytestmark = pytest.mark.e2e

NANO = 10**9
KEYS = {id_: f"sk-nx-of-a-test-of-usage-{id_}" for id_ in ("a", "b")}
CONFIG = """
[auth]
mode = "keys"
[costs]
persist_seconds = 0.2
[[costs.price]]
per_request = "0.1"
input = "1.5"
[[teams]]
name = "red"
[[budgets]]
name = "everything"
usd = "1000000"
per = "total"
[[budgets]]
name = "each"
each = ["key"]
usd = "2000"
reserve_output = 100
""" + "".join(
    f'[[keys]]\nid = "{id_}"\nsha256 = ["{digest(key)}"]\nteam = "red"\n'
    for id_, key in KEYS.items()
)


@pytest.fixture(scope="module")
def demo(module_dir) -> Iterator[Demo]:
    with Demo(module_dir, name="demo", models=["demo-small", "=demo"], pace=0) as demo:
        yield demo


class Place:
    """A directory in which one gateway after another runs."""

    def __init__(self, directory: Path, demo: Demo) -> None:
        self.directory, self.demo = directory, demo

    def gateway(self, name: str = "") -> Gateway:
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        server = f'state_dir = "{self.directory}/state"'
        return Gateway(directory, CONFIG + backend_toml(self.demo), server=server)


@pytest.fixture
def place(tmp_path, demo) -> Place:
    return Place(tmp_path, demo)


def send(gateway, key="a", **more):
    body = json.dumps({**GOOD, **more}).encode()
    return ask(gateway, authorization=f"Bearer {KEYS[key]}", body=body)


def send_many(gateway, count: int) -> None:
    def some(key: str) -> None:
        for number in range(count // 2):
            assert send(gateway, key, max_tokens=2 + number % 3).status == 200

    threads = [threading.Thread(target=some, args=(key,)) for key in KEYS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def nexus(gateway, *arguments: str) -> str:
    command = [sys.executable, "-m", "nexus", *arguments, "-c", str(gateway.file)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environ(), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def reported(gateway, *arguments: str) -> list[dict]:
    report = json.loads(nexus(gateway, "usage", *arguments, "--json"))
    jsonschema.validate(report, SCHEMAS["usage"])
    return report["rows"]


def money(text: str) -> int:
    return round(float(text) * NANO)


def spent(gateway, budget="everything", subject="") -> int:
    found = gateway.scrape().value("nexus_budget_spent_usd", budget=budget, subject=subject)
    return round(found * NANO)


def cost(gateway) -> int:
    samples = gateway.settled().samples.items()
    return round(
        sum(value * NANO for (name, _), value in samples if name == "nexus_cost_usd_total")
    )


class Served:
    """What the demo backend has served since, by its own count."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._before = self._count()

    def _count(self) -> int:
        return self._demo.tally()["statuses"].get("200", 0)

    @property
    def cost(self) -> int:
        """Its price by `CONFIG`: each has the prompt of `GOOD`."""
        return (self._count() - self._before) * (NANO // 10 + tokens_of(GOOD["messages"]) * 1500)


def test_reports_equal_the_counters_and_outlast_a_restart(place):
    with place.gateway() as gateway:
        send_many(gateway, 20)
        send(gateway, model="=demo")
        first = cost(gateway)
        rows = reported(gateway, "--by", "key,team,backend")
        assert [(row["key"], row["team"], row["backend"]) for row in rows] == [
            ("a", "red", "demo"), ("b", "red", "demo"),
        ]  # fmt: skip
        assert sum(row["requests"] for row in rows) == 21
        assert sum(money(row["cost_usd"]) for row in rows) == first == spent(gateway)
        tokens = gateway.scrape().total("nexus_key_tokens_total", type="prompt")
        assert sum(row["input_tokens"] for row in rows) == tokens
        shown = list(csv.DictReader(StringIO(nexus(gateway, "usage", "--by", "model", "--csv"))))
        assert [row["model"] for row in shown] == ["'=demo", "demo-small"]
        assert reported(gateway, "--to", "2020-01-01") == []
    with place.gateway() as gateway:
        assert until(lambda: spent(gateway)) == first
        of_a = spent(gateway, "each", "key a")
        send_many(gateway, 4)
        second = cost(gateway)
        assert spent(gateway) == first + second
        assert spent(gateway, "each", "key a") > of_a
        [row] = reported(gateway, "--by", "team")
        assert (row["requests"], money(row["cost_usd"])) == (25, first + second)


def test_the_health_process_is_killed(place, demo):
    served = Served(demo)
    with place.gateway() as gateway:
        send_many(gateway, 6)
        pid = gateway.health_pid()
        os.kill(pid, signal.SIGKILL)
        send_many(gateway, 6)
        until(lambda: gateway.health_pid() not in (None, pid))
        send_many(gateway, 6)
        total = cost(gateway)
        assert until(lambda: requests_reported(gateway) == 18)
        [row] = reported(gateway, "--by", "team")
        assert money(row["cost_usd"]) == total == spent(gateway) == served.cost


def requests_reported(gateway) -> int:
    try:
        return sum(row["requests"] for row in reported(gateway, "--by", "team"))
    except AssertionError:
        return 0  # it is starting


def test_workers_are_killed(place, demo):
    """What they held is spent: never too little, and never more than that too much."""
    served = Served(demo)
    with place.gateway() as gateway:
        statuses = []

        def go_on() -> None:
            for _ in range(60):
                try:
                    statuses.append(send(gateway).status)
                except OSError:
                    statuses.append(0)

        threads = [threading.Thread(target=go_on) for _ in range(3)]
        for thread in threads:
            thread.start()
        kills = len([os.kill(pid, signal.SIGKILL) for pid in gateway.worker_pids()])
        for thread in threads:
            thread.join()
        lost = gateway.settled().total("nexus_requests_lost_total")
        delivered = cost(gateway)
        held = {"budget": "everything", "subject": ""}
        until(lambda: gateway.scrape().value("nexus_budget_held_usd", **held) == 0)
        most_held = 200_000_000  # nothing here can cost more
        assert statuses.count(200) * 100_000_000 <= spent(gateway)
        # A worker may be killed between the count of a request and the settlement of its hold.
        assert delivered <= spent(gateway) <= delivered + (lost + kills) * most_held
        assert served.cost <= spent(gateway) <= served.cost + (lost + kills) * most_held


def test_the_whole_gateway_is_killed(place, demo):
    """At most what was not written yet is missing; here there was time to write it."""
    served = Served(demo)
    with place.gateway() as gateway:
        send_many(gateway, 10)
        total = cost(gateway)
        until(lambda: written(place) == total)
        pids = [gateway.master_pid(), gateway.health_pid(), *gateway.worker_pids()]
        os.killpg(gateway.pid, signal.SIGKILL)
        gateway.child.wait()
        until(lambda: not any(alive(pid) for pid in pids))
    with place.gateway() as gateway:
        assert until(lambda: spent(gateway)) == total == served.cost
        [row] = reported(gateway, "--by", "team")
        assert money(row["cost_usd"]) == total


def test_a_gateway_that_starts_before_the_last_one_has_ended(place):
    """It cannot write the ledger before, but counts what the last one has written there."""
    with ExitStack() as stack:
        last = stack.enter_context(place.gateway())
        send_many(last, 4)
        until(lambda: spent(last) == cost(last))
        with place.gateway("next") as gateway:
            send_many(gateway, 6)
            until(lambda: gateway.scrape().value("nexus_ledger_write_errors_total") > 0)
            send_many(last, 2)
            earlier, own = cost(last), cost(gateway)
            until(lambda: spent(gateway) == earlier + own)
            assert written(place) == earlier > 0
            stack.close()
            assert send(gateway).status == 200
            total = earlier + cost(gateway)
            until(lambda: written(place) == total)
            [row] = reported(gateway, "--by", "team")
            assert money(row["cost_usd"]) == total == spent(gateway)


def written(place: Place) -> int:
    """What the ledger's file has, as another process reads it."""
    script = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT SUM(cost) FROM usage').fetchone()[0])"  # noqa: E501
    file = place.directory / "state" / "ledger.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=False
    )
    return int(done.stdout) if done.stdout.strip().isdigit() else 0


def test_a_full_disk_stops_no_request_and_the_ledger_catches_up(place):
    with place.gateway() as gateway:
        send_many(gateway, 4)
        until(lambda: written(place) == cost(gateway))
        pid, unlimited = gateway.health_pid(), resource.RLIM_INFINITY
        wal = place.directory / "state" / "ledger.sqlite-wal"
        limit = wal.stat().st_size
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, unlimited))
        before = written(place)
        send_many(gateway, 8)
        until(lambda: gateway.scrape().value("nexus_ledger_write_errors_total") > 0)
        assert send(gateway).status == 200
        assert written(place) == before
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        total = cost(gateway)
        assert until(lambda: written(place) == total, within_s=20)
        assert spent(gateway) == total
