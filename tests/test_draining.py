"""Workers that are replaced let their streams end, and meanwhile others serve."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from nexus.fleet.load_table import SLOTS
from nexus.server.arbiter import max_replaced
from tests.support.load import chat, run
from tests.support.metrics import scrape
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

GRACE_S = 1


@pytest.fixture(scope="module")
def slow(module_dir):
    with Demo(module_dir, name="slow", pace=20, length=10_000) as demo:
        yield demo


@pytest.fixture(scope="module")
def gateway(module_dir, slow):
    with Gateway(
        module_dir, backend_toml(slow), server=f"graceful_timeout_seconds = {GRACE_S}"
    ) as gateway:
        yield gateway


class Streams:
    """Streams in the background that last for minutes, or until the demo backend is told to
    hurry."""

    def __init__(self, gateway: Gateway, slow: Demo, count: int) -> None:
        self.found: list[tuple[int, bytes]] = []
        before = slow.tally()["open"]
        asks = [chat("stream", "demo-small", stream=True, max_tokens=4000)] * count
        seen = lambda _, status, body: self.found.append((status, body))  # noqa: E731
        self._thread = threading.Thread(
            target=run, args=(gateway.port, asks), kwargs={"concurrency": count, "seen": seen}
        )
        self._thread.start()
        until(lambda: slow.tally()["open"] == before + count)

    def going(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> list[tuple[int, bytes]]:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.found


def ask(gateway: Gateway, count: int = 1) -> list[int]:
    statuses: list[int] = []
    asks = [chat("chat", "demo-small", max_tokens=2)] * count
    run(gateway.port, asks, concurrency=1, seen=lambda _, status, __: statuses.append(status))
    return statuses


def assert_whole(streams: Streams, count: int) -> None:
    found = streams.join()
    assert [status for status, _ in found] == [200] * count
    assert all(body.rstrip().endswith(b"data: [DONE]") for _, body in found)
    assert not any(b"shutdown" in body for _, body in found)


def serving(gateway: Gateway) -> tuple[float, float]:
    found = scrape(gateway.operations)
    return found.value("nexus_workers"), found.value("nexus_workers_draining")


def until_serving(gateway: Gateway, workers: int, draining: int) -> None:
    last: list[tuple[float, float]] = []

    def as_expected() -> bool:
        last[:] = [serving(gateway)]
        return last == [(workers, draining)]

    try:
        until(as_expected)
    except AssertionError as error:
        state = f"{last}, not {(workers, draining)}; alive: {gateway.worker_pids()}"
        raise AssertionError(f"{error}: {state}\n{gateway.output()[-4000:]}") from None


def drains_beside(gateway: Gateway, workers: int) -> bool:
    """Whether so many serve, and at least one drains; which workers have the streams is the
    kernel's choice."""
    serve, drain = serving(gateway)
    return serve == workers and drain > 0


def serve_for(gateway: Gateway, seconds: float) -> None:
    """Requests are answered, one after the other, for so long."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        assert ask(gateway) == [200]


@pytest.mark.parametrize(("number", "left"), [(signal.SIGHUP, 2), (signal.SIGTTOU, 1)])
def test_replaced_workers_let_streams_end(gateway, slow, number, left):
    until_serving(gateway, 2, 0)
    old = set(gateway.worker_pids())
    streams = Streams(gateway, slow, 12)
    os.kill(gateway.master_pid(), number)
    until(lambda: drains_beside(gateway, left), within_s=30)
    serve_for(gateway, 2 * GRACE_S)
    assert streams.going(), "also when the grace of a stop is over"
    assert slow.tally()["open"] == 12
    slow.hurry()
    assert_whole(streams, 12)
    until_serving(gateway, left, 0)
    stay = 0 if number == signal.SIGHUP else 1
    until(lambda: len(old & set(gateway.worker_pids())) == stay)
    if number == signal.SIGTTOU:
        os.kill(gateway.master_pid(), signal.SIGTTIN)
    after = gateway.settled()
    assert after.value("nexus_requests_lost_total") == 0
    assert after.value("nexus_accounting_imbalance") == 0
    assert after.total("nexus_errors_total") == 0


def test_a_reload_of_the_master_does_not_wait_for_draining_workers(gateway, slow):
    """Another signal is heard at once, while the workers of the first still drain."""
    until_serving(gateway, 2, 0)
    streams = Streams(gateway, slow, 6)
    os.kill(gateway.master_pid(), signal.SIGHUP)
    until(lambda: drains_beside(gateway, 2), within_s=30)
    os.kill(gateway.master_pid(), signal.SIGTTIN)
    until(lambda: drains_beside(gateway, 3), within_s=30)
    assert slow.tally()["open"] == 6
    os.kill(gateway.master_pid(), signal.SIGTTOU)
    slow.hurry()
    assert_whole(streams, 6)
    until_serving(gateway, 2, 0)


def test_requests_are_served_while_workers_recycle(tmp_path, slow):
    """Both workers reach their number of requests while streams hold them; none is cut, and two
    always serve."""
    with Gateway(
        tmp_path,
        backend_toml(slow),
        server=f"graceful_timeout_seconds = {GRACE_S}",
        environ={"NEXUS_MAX_REQUESTS": "10"},
    ) as gateway:
        old = set(gateway.worker_pids())
        streams = Streams(gateway, slow, 12)

        def all_replaced() -> bool:
            assert ask(gateway) == [200]
            serve, drain = serving(gateway)
            assert serve >= 2, "a worker leaves the count when another serves in its stead"
            return drain == 2

        until(all_replaced, within_s=60)
        serve_for(gateway, 2 * GRACE_S)
        assert slow.tally()["open"] == 12
        slow.hurry()
        assert_whole(streams, 12)
        until(lambda: not old & set(gateway.worker_pids()), within_s=20)
        after = gateway.settled()
        assert after.value("nexus_requests_lost_total") == 0
        assert after.value("nexus_accounting_imbalance") == 0
        assert after.value("nexus_worker_restarts_total") >= 2


def test_draining_has_a_limit_and_a_stop_is_heard_by_workers_that_drain(tmp_path, slow):
    with Gateway(
        tmp_path,
        backend_toml(slow),
        server=f"graceful_timeout_seconds = {GRACE_S}\ndrain_timeout_seconds = 2",
    ) as gateway:
        streams = Streams(gateway, slow, 2)
        os.kill(gateway.master_pid(), signal.SIGHUP)
        assert all(b"shutdown" in body for _, body in streams.join())
        until_serving(gateway, 2, 0)

        gateway.settings = gateway.settings.replace(
            "drain_timeout_seconds = 2", "drain_timeout_seconds = 600"
        )
        gateway.write(backend_toml(slow))
        os.kill(gateway.health_pid(), signal.SIGHUP)
        until(lambda: gateway.lines("configuration reloaded"))
        streams = Streams(gateway, slow, 2)
        os.kill(gateway.master_pid(), signal.SIGHUP)
        until(lambda: drains_beside(gateway, 2), within_s=30)
        serve_for(gateway, 3)
        assert slow.tally()["open"] == 2, "the new limit holds without a restart"
        assert gateway.stop(within_s=30) == 0
        assert all(b"shutdown" in body for _, body in streams.join())
        lines = [line for line in gateway.lines("request") if line["stream"]]
        assert [(line["status"], line["fault"]) for line in lines] == [(502, "shutdown")] * 4


@pytest.mark.parametrize("workers", [1, 2, 8, 50, 120])
def test_slots_suffice_for_replaced_workers(workers):
    """Those that serve, those that start in their stead, those that drain, and the health
    process."""
    assert max_replaced(workers) >= 1
    assert 2 * workers + max_replaced(workers) + 1 <= SLOTS


def test_a_frozen_host_thaws_without_losing_streams(tmp_path, slow):
    """The master and its workers are stopped for longer than gunicorn's time-out, and go on."""
    frozen_s = 8
    with Gateway(
        tmp_path, backend_toml(slow), environ={"GUNICORN_CMD_ARGS": "--timeout 6"}
    ) as gateway:
        streams = Streams(gateway, slow, 4)
        workers = gateway.worker_pids()
        group = [gateway.pid, gateway.master_pid(), gateway.health_pid(), *workers]
        for pid in group:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: all(state(pid) == "T" for pid in group))
        thaw = time.monotonic() + frozen_s
        until(lambda: time.monotonic() > thaw, within_s=frozen_s + 5)
        for pid in group:
            os.kill(pid, signal.SIGCONT)
        serve_for(gateway, 3)
        assert slow.tally()["open"] == 4
        slow.hurry()
        assert_whole(streams, 4)
        assert gateway.worker_pids() == workers
        after = gateway.settled()
        assert after.value("nexus_requests_lost_total") == 0
        assert after.total("nexus_requests_total", status="499") == 0


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def ignored(pid: int) -> set[int]:
    """The signals that a process ignores without running a handler."""
    [line] = re.findall(r"^SigIgn:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return {number for number in range(1, 65) if int(line, 16) >> (number - 1) & 1}


def test_signals_that_mean_nothing_here_harm_nobody(gateway):
    """Whoever sends them to every process of the gateway, as `pkill` does, loses nothing."""
    until_serving(gateway, 2, 0)
    master, health, workers = gateway.master_pid(), gateway.health_pid(), gateway.worker_pids()
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
        for pid in (gateway.pid, master, health, *workers):
            os.kill(pid, number)
    for pid in workers:
        os.kill(pid, signal.SIGHUP)
        assert {signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH} <= ignored(pid)
    until(lambda: any("USR2 is not supported" in line["event"] for line in gateway.lines()))
    serve_for(gateway, 1.5)
    assert gateway.worker_pids() == workers
    assert gateway.health_pid() == health
    assert gateway.child.poll() is None


def test_the_supervisor_passes_on_what_is_for_gunicorn(gateway):
    until_serving(gateway, 2, 0)
    gateway.send(signal.SIGTTIN)
    until_serving(gateway, 3, 0)
    gateway.send(signal.SIGTTOU)
    until_serving(gateway, 2, 0)


def test_quit_ends_without_the_grace(tmp_path, slow):
    gateway = Gateway(tmp_path, backend_toml(slow), server="graceful_timeout_seconds = 300")
    streams = Streams(gateway, slow, 2)
    gateway.send(signal.SIGQUIT)
    assert gateway.child.wait(30) == 0
    streams.join()
