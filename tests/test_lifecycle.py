"""What an operator, or the kernel, does to the processes, and what that does to the metrics."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.load import chat, run
from tests.support.metrics import Scrape, scrape
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, Process, backend_toml, clean_environ, free_port

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def slow(module_dir):
    with Demo(module_dir, name="slow", pace=50, length=10_000) as demo:
        yield demo


@pytest.fixture
def gateway(tmp_path, slow):
    with Gateway(tmp_path, backend_toml(slow), workers=2) as gateway:
        yield gateway


def ask(gateway: Gateway, count: int, **more) -> list[int]:
    statuses: list[int] = []
    asks = [chat("chat", "demo-small", max_tokens=3, **more)] * count
    run(gateway.port, asks, concurrency=4, seen=lambda _, status, __: statuses.append(status))
    return statuses


class Streams:
    """Streams that go on in the background until they end."""

    def __init__(self, gateway: Gateway, slow: Demo, count: int, **more) -> None:
        self.statuses: list[int] = []
        before = slow.tally()["open"]
        asks = [chat("stream", "demo-small", stream=True, **more)] * count
        seen = lambda _, status, __: self.statuses.append(status)  # noqa: E731
        self._thread = threading.Thread(
            target=run, args=(gateway.port, asks), kwargs={"concurrency": count, "seen": seen}
        )
        self._thread.start()
        until(lambda: slow.tally()["open"] == before + count)

    def join(self) -> list[int]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return sorted(self.statuses)


def counters(found: Scrape) -> dict:
    """What must never go down: counters, and histograms' counts. Processor time has a series for
    each process."""
    suffixes = ("_total", "_count", "_bucket")
    gauges = ("nexus_backends_total",)
    return {
        key: value
        for key, value in found.samples.items()
        if key[0].endswith(suffixes)
        and key[0] not in gauges
        and not key[0].startswith("nexus_process_")
    }


def assert_none_fell(before: Scrape, after: Scrape) -> None:
    fell = {
        key: (value, after.samples.get(key))
        for key, value in counters(before).items()
        if after.samples.get(key, 0) < value
    }
    assert not fell


def test_killed_worker(gateway, slow):
    """Its counters stay; what it had in flight is lost, once, and is pending no more."""
    until(lambda: gateway.scrape().value("nexus_workers") == 2)
    ask(gateway, 20)
    before = gateway.settled()
    streams = Streams(gateway, slow, 6)
    for pid in gateway.worker_pids():
        os.kill(pid, signal.SIGKILL)
    until(lambda: scrape(gateway.operations).value("nexus_pending_requests", backend="slow") == 0)
    assert len(streams.join()) == 6
    after = until(lambda: (s := gateway.settled()).value("nexus_requests_lost_total") == 6 and s)
    assert_none_fell(before, after)
    assert after.value("nexus_accounting_imbalance") == 0
    assert after.total("nexus_requests_total") == 20
    until(lambda: gateway.scrape().value("nexus_workers") == 2)
    until(lambda: gateway.scrape().value("nexus_worker_restarts_total") == 2)
    until(lambda: gateway.scrape().value("nexus_worker_deaths_total") == 2)
    assert ask(gateway, 4) == [200] * 4


def test_killed_health_process(gateway):
    ask(gateway, 4)
    before = gateway.settled()
    probes = before.value("nexus_backend_latency_seconds_count", backend="slow")
    old = gateway.health_pid()
    os.kill(old, signal.SIGKILL)
    until(lambda: gateway.scrape().value("nexus_health_process_up") == 0)
    assert ask(gateway, 4) == [200] * 4
    until(lambda: gateway.scrape().value("nexus_health_process_up") == 1)
    until(lambda: gateway.health_pid() != old)
    after = until(
        lambda: (
            (s := gateway.settled()).value("nexus_backend_latency_seconds_count", backend="slow")
            > probes
            and s
        )
    )
    assert_none_fell(before, after)
    assert after.total("nexus_requests_total") == 8
    assert after.value("nexus_accounting_imbalance") == 0


def test_hup_replaces_the_workers_without_a_failed_request(gateway, slow):
    ask(gateway, 10)
    before = gateway.settled()
    old = set(gateway.worker_pids())
    streams = Streams(gateway, slow, 3, max_tokens=60)
    gateway.send(signal.SIGHUP)
    until(
        lambda: not old & set(gateway.worker_pids()) and len(gateway.worker_pids()) == 2,
        within_s=20,
    )
    assert streams.join() == [200] * 3
    assert ask(gateway, 10) == [200] * 10
    after = gateway.settled()
    assert_none_fell(before, after)
    assert after.total("nexus_requests_total", status="200") == 23
    assert after.value("nexus_requests_lost_total") == 0
    assert after.value("nexus_accounting_imbalance") == 0
    assert after.value("nexus_worker_restarts_total") == 2
    assert after.value("nexus_worker_deaths_total") == 0, "they ended as they were told to"
    assert "configuration reloaded" in gateway.output()


@pytest.mark.parametrize("asked_before", ["/v1/models", "/metrics", "/nothing"])
def test_a_stop_cuts_no_stream_over_a_connection_that_was_used_before(gateway, asked_before):
    """A stop cuts pages that nobody reads. A stream over the same connection is not one of them."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", gateway.port)) as client:
        client.request("GET", asked_before)
        client.getresponse().read()
        request = {"model": "demo-small", "stream": True, "max_tokens": 150}
        body = json.dumps(request | {"messages": [{"role": "user", "content": "Hi"}]})
        client.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = client.getresponse()
        stopped = threading.Thread(target=gateway.stop)
        stopped.start()
        assert response.read().endswith(b"data: [DONE]\n\n")
        stopped.join()


def memory_kb(pid: int, *names: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in names)


def test_growing_and_shrinking(gateway):
    for pid in gateway.worker_pids():
        own = memory_kb(pid, "Private_Clean", "Private_Dirty")
        assert own < memory_kb(pid, "Rss") / 2, "workers share the memory of the program"
    ask(gateway, 8)
    before = gateway.settled()
    for number, workers in (
        (signal.SIGTTIN, 3),
        (signal.SIGTTIN, 4),
        (signal.SIGTTOU, 3),
        (signal.SIGTTOU, 2),
        (signal.SIGTTOU, 1),
    ):
        os.kill(gateway.master_pid(), number)
        until(
            lambda workers=workers: gateway.scrape().value("nexus_workers") == workers, within_s=15
        )
        ask(gateway, 4)
        after = gateway.settled()
        assert_none_fell(before, after)
        before = after
    assert after.total("nexus_requests_total") == 28
    assert after.value("nexus_worker_deaths_total") == 0
    files = list(gateway.run_dir.glob("generations/*/metrics/*.db"))
    assert len(files) <= 2 * 5 + 1, (
        "4 workers and the health process, two files each, and the fleet's gauges"
    )


def test_recycling_with_streams_in_flight(tmp_path, slow):
    with Gateway(
        tmp_path, backend_toml(slow), workers=2, environ={"NEXUS_MAX_REQUESTS": "10"}
    ) as gateway:
        streams = Streams(gateway, slow, 2, max_tokens=100)
        assert ask(gateway, 80) == [200] * 80
        assert streams.join() == [200] * 2
        after = until(lambda: (s := gateway.settled()).total("nexus_requests_total") == 82 and s)
        assert after.value("nexus_requests_lost_total") == 0
        assert after.value("nexus_accounting_imbalance") == 0
        until(lambda: gateway.scrape().value("nexus_worker_restarts_total") >= 2)
        assert gateway.scrape().value("nexus_worker_deaths_total") == 0


def test_restart_starts_at_zero_and_orphans_keep_to_their_generation(tmp_path, slow):
    """The master is killed; its workers see that, and end; a gateway started meanwhile counts
    from zero."""
    port = free_port()
    environ = clean_environ(
        NEXUS_RUN_DIR=str(tmp_path / "run"),
        NEXUS_PORT=str(port),
        NEXUS_HOST="127.0.0.1",
        NEXUS_WORKERS="2",
        NEXUS_CONFIG=str(tmp_path / "nexus.toml"),
        NEXUS_HEALTH_LISTEN=f"127.0.0.1:{free_port()}",
        NEXUS_GRACEFUL_TIMEOUT="5",
    )
    (tmp_path / "nexus.toml").write_text(backend_toml(slow))
    command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "wsgi:app"]
    base, operations = f"http://127.0.0.1:{port}", f"http://{environ['NEXUS_HEALTH_LISTEN']}"
    with Process(
        [sys.executable, "-m", "nexus.health"], log=tmp_path / "health.log", environ=environ
    ):
        # The health unit runs before and without the gateway.
        until(lambda: scrape(operations).value("nexus_backends_healthy") == 1, within_s=15)
        first = Process(command, log=tmp_path / "first.log", environ=environ)
        until(lambda: scrape(base).value("nexus_backends_healthy") == 1, within_s=15)
        gateway = type("At", (), {"port": port})()
        ask(gateway, 6)
        until(lambda: scrape(operations).total("nexus_requests_total") == 6)
        first.stop(number=signal.SIGKILL)
        second = until(
            lambda: started(command, tmp_path / "second.log", environ, base), within_s=20
        )
        with second:
            until(lambda: scrape(base).total("nexus_requests_total") == 0, within_s=15)
            until(lambda: scrape(operations).total("nexus_requests_total") == 0)
            ask(gateway, 3)
            until(lambda: scrape(operations).total("nexus_requests_total") == 3)
            assert scrape(base).value("nexus_accounting_imbalance") == 0
            assert "following the gateway's new start" in (tmp_path / "health.log").read_text()


def started(command: list[str], log: Path, environ: dict[str, str], base: str) -> Process | None:
    """A gateway, once the port is free of the orphans of the one before."""
    process = Process(command, log=log, environ=environ)
    try:
        until(
            lambda: process.child.poll() is None and scrape(base).value("nexus_workers") == 2,
            within_s=8,
        )
    except AssertionError:
        process.stop(number=signal.SIGKILL)
        return None
    return process


def test_run_directory_that_is_removed(gateway):
    """An error in the log, a metric, and the gateway goes on; what was counted is still shown."""
    until(
        lambda: len(gateway.lines("worker ready")) == 2
    )  # one that starts later could not know the fleet
    ask(gateway, 10)
    for _ in range(8):
        before = gateway.settled()
    until(lambda: removed(gateway.run_dir))
    assert ask(gateway, 10) == [200] * 10
    after = until(lambda: (s := gateway.scrape()).total("nexus_requests_total") == 20 and s)
    assert after.value("nexus_run_directory_usable") == 0
    assert after.value("nexus_accounting_imbalance") == 0
    assert after.total("nexus_requests_total") > before.total("nexus_requests_total")
    assert gateway.lines("the run directory cannot be used")


def removed(path: Path) -> bool:
    """Remove a directory; another try follows if a process has written a file meanwhile."""
    shutil.rmtree(path)
    return True


def fill(path: Path) -> None:
    """Write until there is no space left."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="No space"):
        fill_up(fd)
    os.close(fd)


def fill_up(fd: int) -> None:
    while True:
        os.write(fd, b"x" * 4096)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_run_directory_that_is_full(tmp_path, slow):
    """A file system without space: no process dies, requests go on, and it is said."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(place)],
        capture_output=True,
        text=True,
    )
    assert mounted.returncode == 0, mounted.stderr
    try:
        gateway = Gateway(
            tmp_path, backend_toml(slow), workers=2, environ={"NEXUS_RUN_DIR": str(place / "run")}
        )
        with gateway:
            ask(gateway, 4)
            pids = gateway.worker_pids()
            filler = place / "filler"
            fill(filler)
            assert ask(gateway, 10) == [200] * 10
            assert ask(gateway, 4, stream=True) == [200] * 4
            after = gateway.settled()
            assert after.value("nexus_run_directory_usable") == 0
            assert after.value("nexus_accounting_imbalance") == 0
            assert gateway.worker_pids() == pids
            assert gateway.child.poll() is None
            filler.unlink()
            until(lambda: gateway.scrape().value("nexus_run_directory_usable") == 1)
    finally:
        subprocess.run(["umount", str(place)], check=True)
