"""Mixed load while something happens to the processes every second: metrics, limits and budgets
hold all the time.

`make chaos` runs it longer; NEXUS_CHAOS_SECONDS and NEXUS_CHAOS_SEED set how long, and what happens
when.
"""

import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from nexus.fleet.load_table import LoadTable
from tests.access.limited import key_of, keys_toml
from tests.support.load import ParsedRequest, chat, run
from tests.support.metrics import Scrape, scrape
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml
from tests.test_lifecycle import assert_none_fell

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

SECONDS = float(os.environ.get("NEXUS_CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("NEXUS_CHAOS_SEED", "1"))
CONCURRENCY = 50
ADMITTED = 150
"""Requests that the key `rate` may send; it sends more."""
PLACES = 3
CAP_USD = 0.05
"""What the key `money` may spend: about 100 responses."""
ACCESS = f"""
[auth]
mode = "keys"
{keys_toml("load", "rate", "few", "money")}
[[limits]]
name = "rate"
match = {{ key = "rate" }}
requests = "{ADMITTED}/d"
[[limits]]
name = "few"
match = {{ key = "few" }}
parallel = {PLACES}
[costs]
price = [{{ model = "*", input = "1", output = "10" }}]
[[budgets]]
name = "cap"
match = {{ key = "money" }}
usd = "{CAP_USD}"
per = "total"
reserve_output = 40
"""
PAUSE_S = (
    0.2  # between two requests of a client: two cores carry clients, gateway, backends and scrapes
)


class Chaos:
    """What can happen, and what has."""

    def __init__(self, gateway: Gateway, spare: list[Demo], directory, rng: random.Random) -> None:
        self.gateway = gateway
        self.rng = rng
        self.kills = 0
        self.happened: Counter[str] = Counter()
        self._workers = 4
        self._spare = spare
        self._directory = directory

    def step(self) -> None:
        actions: list[Callable[[], None]] = [
            self.kill_worker,
            self.kill_worker,
            self.kill_health_process,
            self.hup,
            self.grow,
            self.shrink,
            self.backend,
            self.change_keys,
        ]
        action = self.rng.choice(actions)
        action()
        self.happened[action.__name__] += 1

    def kill_worker(self) -> None:
        pids = self.gateway.worker_pids()
        if pids:
            self.kills += 1
            kill(self.rng.choice(pids), signal.SIGKILL)

    def kill_health_process(self) -> None:
        kill(self.gateway.health_pid(), signal.SIGKILL)

    def hup(self) -> None:
        kill(self.gateway.master_pid(), signal.SIGHUP)
        self._workers = 4

    def grow(self) -> None:
        if self._workers < 6:
            self._workers += 1
            kill(self.gateway.master_pid(), signal.SIGTTIN)

    def shrink(self) -> None:
        if self._workers > 2:
            self._workers -= 1
            kill(self.gateway.master_pid(), signal.SIGTTOU)

    def backend(self) -> None:
        """A backend that is there goes; one that went comes back on its address."""
        demo = self._spare[0]
        if demo.child.poll() is None:
            demo.stop(number=signal.SIGKILL)
        else:
            self._spare[0] = Demo(
                self._directory, name=demo.name, port=demo.port, models=["shared"], pace=0
            )

    def change_keys(self) -> None:
        """A key comes or goes, and the configuration is read again."""
        text, more = self.gateway.file.read_text(), keys_toml("another")
        self.gateway.file.write_text(text.replace(more, "") if more in text else text + more)
        kill(self.gateway.health_pid(), signal.SIGHUP)


def kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def asks(until_s: float) -> Iterator[ParsedRequest]:
    def mixed(number: int) -> ParsedRequest:
        match number % 8:
            case 0 | 1:
                return chat("chat", "shared")
            case 2:
                return chat("stream", "shared", stream=True, stream_options={"include_usage": True})
            case 3:
                body = {"model": "shared", "input": "x"}
                return ParsedRequest("embeddings", "/v1/embeddings", body)
            case 4:
                return chat("flaky", "flaky")
            case 5:
                return chat("rate", "shared", max_tokens=3)
            case 6:
                return chat("few", "shared", stream=True)
            case _:
                return chat("money", "shared", max_tokens=40)

    for number in itertools.count():
        if time.monotonic() > until_s:
            return
        asked = mixed(number) if number % 9 else chat("unknown", f"made-up-{number}")
        key = asked.kind if asked.kind in ("rate", "few", "money") else "load"
        yield replace(asked, key=key_of(key))


def test_metrics_hold_whatever_happens(tmp_path):
    rng = random.Random(SEED)
    with (
        Demo(tmp_path, name="steady", models=["shared"], pace=0) as steady,
        Demo(
            tmp_path, name="flaky", models=["flaky"], pace=0, fault="status=500,rate=0.3,seed=2"
        ) as flaky,
    ):
        spare = [Demo(tmp_path, name="spare", models=["shared"], pace=0)]
        try:
            config = ACCESS + backend_toml(steady, flaky, *spare)
            with Gateway(tmp_path, config, workers=4, interval_s=1) as gateway:
                chaos = Chaos(gateway, spare, tmp_path, rng)
                tally = under_load(gateway, chaos)
                check_the_end(gateway, chaos, tally)
        finally:
            spare[0].stop(number=signal.SIGKILL)


def under_load(gateway: Gateway, chaos: Chaos) -> Counter[tuple[str, int]]:
    """Load, chaos and scrapes, five a second from both addresses in turn; gives the client's
    tally by kind and status."""
    end = time.monotonic() + SECONDS
    tally: Counter[tuple[str, int]] = Counter()

    def seen(asked: ParsedRequest, status: int, _: bytes) -> None:
        tally[asked.kind, status] += 1

    def load() -> None:
        run(gateway.port, asks(end), concurrency=CONCURRENCY, seen=seen, pause_s=PAUSE_S)

    loader = threading.Thread(target=load)
    loader.start()
    previous: Scrape | None = None
    scraped, due = Counter(), time.monotonic() + 1
    try:
        for base in itertools.cycle([gateway.base, gateway.operations]):
            began = time.monotonic()
            if began > end:
                break
            if began > due:
                chaos.step()
                due += 1
            try:
                found = scrape(base)
            except OSError:
                scraped["failed"] += 1  # the process that was to answer was just killed
            else:
                scraped[base] += 1
                if previous is not None:
                    assert_none_fell(previous, found)
                previous = found
                assert spent_and_held(found) <= CAP_USD + 1e-9
            time.sleep(max(0.0, began + 0.2 - time.monotonic()))
    finally:
        loader.join(60)
    assert not loader.is_alive()
    # Five a second, in turn, were requested; how many there are depends on the machine.
    assert min(scraped[gateway.base], scraped[gateway.operations]) > 2, scraped
    return tally


def spent_and_held(found: Scrape) -> float:
    return found.total("nexus_budget_spent_usd") + found.total("nexus_budget_held_usd")


def check_access(quiet: Scrape, clients: Counter[tuple[str, int]]) -> None:
    """No limit was passed, nothing is held, and the money by key is the money by backend."""
    # A rate admits whom the lock of the table keeps waiting, and counts it.
    most = ADMITTED + quiet.value("nexus_limit_lock_misses_total")
    counted = quiet.value("nexus_key_requests_total", key="rate", team="none", status="200")
    assert clients["rate", 429] > 0
    assert max(clients["rate", 200], counted) <= most
    assert quiet.value("nexus_limit_level", limit="few", subject="", dimension="parallel") == 1
    assert clients["money", 429] > 0
    assert quiet.total("nexus_budget_held_usd") == 0
    assert quiet.total("nexus_budget_overrun_usd_total") == 0
    delivered = quiet.total("nexus_cost_usd_total", outcome="delivered")
    assert round(delivered * 1e9) == round(quiet.total("nexus_key_cost_usd_total") * 1e9) > 0


def check_the_end(gateway: Gateway, chaos: Chaos, clients: Counter[tuple[str, int]]) -> None:
    quiet = until(lambda: balanced(gateway), within_s=30)
    tally: Counter[int] = Counter()
    for (_, status), count in clients.items():
        tally[status] += count
    print(
        f"seed {SEED}: {dict(chaos.happened)}, clients saw {dict(tally)}, lost "
        f"{quiet.value('nexus_requests_lost_total')}, lock misses "
        f"{quiet.value('nexus_limit_lock_misses_total')}"
    )
    assert sum(tally.values()) > SECONDS
    assert set(tally) <= {0, 200, 404, 429, 502, 503}, "no client left or sent half a request"
    check_access(quiet, clients)
    for base in (
        gateway.base,
        until(lambda: scrape(gateway.operations) and gateway.operations, within_s=30),
    ):
        found = scrape(base)
        assert found.value("nexus_accounting_imbalance") == 0
        assert found.total("nexus_pending_requests") == 0
        total = found.total("nexus_requests_total")
        errors = sum(
            v
            for (status,), v in found.series("nexus_requests_total", "status").items()
            if status >= "4"
        )
        assert abs(total - found.total("nexus_request_duration_seconds_count")) <= chaos.kills
        assert abs(errors - found.total("nexus_errors_total")) <= chaos.kills

    by_status = {
        int(status): count
        for (status,), count in quiet.series("nexus_requests_total", "status").items()
    }
    for status in {*by_status, *tally} - {0, 499}:
        # A response that was on its way when its worker was killed is counted on one side only.
        assert abs(by_status.get(status, 0) - tally[status]) <= chaos.kills, (
            status,
            by_status,
            tally,
        )
    # What a client saw break off was lost with a worker, or never reached one.
    assert (
        quiet.value("nexus_requests_lost_total") + by_status.get(499, 0) <= tally[0] + chaos.kills
    )

    files = list(gateway.run_dir.glob("generations/*/metrics/*.db"))
    table = LoadTable(gateway.run_dir / "current" / "load")
    # Without slots that are used again, each worker and each health process would have its own.
    assert table.rows < table.worker_starts()
    assert len(files) <= 2 * table.rows + 1, sorted(path.name for path in files)
    assert quiet.value("nexus_metrics_damaged_files_total") == 0
    assert "Traceback" not in gateway.output()


def balanced(gateway: Gateway) -> Scrape | None:
    found = gateway.scrape()
    started = found.total("nexus_requests_started_total")
    ended = found.total("nexus_requests_total") + found.total("nexus_requests_lost_total")
    return found if started == ended and found.value("nexus_accounting_imbalance") == 0 else None
