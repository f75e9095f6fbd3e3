"""The units: checked by systemd's own tools, and their commands run as systemd runs them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from nexus.config import Config
from tests.support.load import ParsedRequest, chat, run
from tests.support.polling import until
from tests.support.processes import Demo, backend_toml, free_port
from tests.support.services import UNITS, Service, Unit, held_listener, here, processes_of

pytestmark = pytest.mark.e2e

SERVICES = ("nexus.service", "nexus-health.service")
GRACE_S = 5


class Host:
    """What systemd holds for the two services: the socket, the directories, the configuration."""

    def __init__(self, directory: Path, config: str) -> None:
        self.directory = directory
        self.paths = here(directory)
        self.listener = held_listener()
        self.port: int = self.listener.getsockname()[1]
        self.file = directory / "etc" / "nexus.toml"
        self.file.write_text(config)
        (directory / "etc" / "nexus.env").write_text(
            f"# as an operator writes it\nNEXUS_WORKERS=2\nNEXUS_GRACEFUL_TIMEOUT={GRACE_S}\n"
            f"NEXUS_HEALTH_LISTEN=127.0.0.1:{free_port()}\n"
        )

    def unit(self, name: str) -> Unit:
        return Unit(name, self.paths)

    def gateway(self) -> Service:
        service = Service(self.unit("nexus.service"), self.directory, listener=self.listener)
        service.base = f"http://127.0.0.1:{self.port}"
        return service

    def health(self, *, watchdog_s: float = 20, **environ: str) -> Service:
        return Service(
            self.unit("nexus-health.service"),
            self.directory,
            watchdog_s=watchdog_s,
            environ=environ,
        )

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def host(tmp_path: Path, demo: Demo) -> Iterator[Host]:
    host = Host(tmp_path, backend_toml(demo) + "[health_check]\ninterval_seconds = 0.5\n")
    yield host
    host.close()


class Load:
    """Requests without end from four clients, two of which make a new connection for each, until
    `end()`."""

    def __init__(self, host: Host) -> None:
        self.statuses: Counter[int] = Counter()
        self.broken: list[bytes] = []
        self._port = host.port
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._connect_each_time),
            threading.Thread(target=self._connect_each_time),
            threading.Thread(target=self._ask, args=(self._endless(), 2)),
        ]
        for thread in self._threads:
            thread.start()
        self.goes_on()

    def _endless(self) -> Iterator[ParsedRequest]:
        while not self._ending.is_set():
            yield chat("x", "demo-small", max_tokens=2)

    def _connect_each_time(self) -> None:
        for ask in self._endless():
            self._ask([ask], 1)

    def _ask(self, asks: Iterable[ParsedRequest], concurrency: int) -> None:
        run(self._port, asks, concurrency=concurrency, seen=self._seen)

    def _seen(self, _: ParsedRequest, status: int, content: bytes) -> None:
        self.statuses[status] += 1
        if status != 200:
            self.broken.append(content)

    def goes_on(self) -> None:
        served = self.statuses[200]
        until(lambda: self.statuses[200] > served + 20)

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def assert_none_failed(self) -> None:
        """After the end."""
        self.end()
        assert list(self.statuses) == [200], (self.statuses, self.broken)


# What systemd's tools say


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as installed, with programs that are there, and the example of a drop-in."""
    directory = tmp_path / "units"
    for path in UNITS.glob("nexus*.*"):
        if path.suffix in (".service", ".socket", ".target"):
            directory.mkdir(exist_ok=True)
            (directory / path.name).write_text(Unit(path.name, here(tmp_path)).text)
    for name in SERVICES:
        (directory / f"{name}.d").mkdir()
        shutil.copy(UNITS / "credentials.conf", directory / f"{name}.d")
    return directory


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, timeout=60
    )


def test_verify(units: Path):
    names = sorted(str(path) for path in units.iterdir() if path.is_file())
    assert [Path(name).name for name in names] == [
        "nexus-health.service", "nexus.service", "nexus.socket", "nexus.target"
    ]  # fmt: skip
    done = analyze("verify", *names)
    assert (done.returncode, done.stderr) == (0, "")


def test_verify_reads_the_drop_in(units: Path):
    with (units / "nexus.service.d" / "credentials.conf").open("a") as file:
        file.write("LoadCredentials=a:b\n")
    assert "'LoadCredentials'" in analyze("verify", str(units / "nexus.service")).stderr


@pytest.mark.parametrize("name", SERVICES)
def test_exposure(units: Path, name: str):
    done = analyze("security", "--offline=true", "--threshold=25", str(units / name))
    assert done.returncode == 0, done.stdout
    assert float(re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)[1]) < 2.5


def test_time_outs_fit():
    gateway, grace_s = Unit("nexus.service", {}), Config().server.graceful_timeout_seconds
    assert gateway.seconds("TimeoutStopSec") > 2 * grace_s
    assert gateway.one("KillMode") == "mixed"
    assert gateway.all("WatchdogSec") == [], "gunicorn's master does not ping"
    assert (
        Unit("nexus-health.service", {}).seconds("TimeoutStartSec")
        > 2 * Config().health_check.timeout_seconds
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory to another user takes root")
def test_user_and_run_directory(tmp_path: Path):
    (tmp_path / "etc").mkdir()
    subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", str(UNITS / "sysusers.conf")], check=True
    )
    user = next(
        line.split(":")
        for line in (tmp_path / "etc/passwd").read_text().splitlines()
        if line[:6] == "nexus:"
    )
    subprocess.run(
        ["systemd-tmpfiles", f"--root={tmp_path}", "--create", str(UNITS / "tmpfiles.conf")],
        check=True,
    )
    made = (tmp_path / "run/nexus").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (int(user[2]), int(user[3]), 0o700)
    assert user[-1].endswith("nologin")


# What the services tell systemd


def two(pids: list[int]) -> list[int] | None:
    return pids if len(pids) == 2 else None


def test_ready_only_when_it_serves(host: Host):
    """Not when gunicorn's master is up, nor when a worker is, but when a worker has a fleet."""
    with host.gateway() as gateway:
        until(
            lambda: gateway.notify.status().startswith("Waiting for the health process"),
            within_s=20,
        )
        # The first one says so, perhaps before the second one is there.
        master, workers = gateway.pid, until(lambda: two(processes_of(gateway.pid)))
        assert (
            subprocess.run(
                ["curl", "-sf", f"{gateway.base}/livez"], stdout=subprocess.DEVNULL
            ).returncode
            == 0
        )
        assert gateway.notify.having("READY") == []
        with host.health() as health:
            found = health.wait_ready()
            assert (found.pid, found.fields["STATUS"]) == (
                health.pid,
                "1 of 1 backend healthy, 2 models",
            )
            ready = gateway.wait_ready()
            assert ready.pid in workers
            statuses: list[int] = []
            run(
                host.port,
                [chat("x", "demo-small")],
                concurrency=1,
                seen=lambda _, status, __: statuses.append(status),
            )
            assert statuses == [200]
            assert master not in {told.pid for told in gateway.notify.told}
            health.send(signal.SIGTERM)
            until(lambda: health.notify.having("STOPPING"))
            assert health.stop() == 0
        assert gateway.stop() == 0
        for service in (gateway, health):
            lines = service.output().splitlines()
            assert lines
            assert all(re.match(r"<[2-7]>[a-z.]+: ", line) for line in lines), (
                "every line has the journal's priority"
            )


def test_status_follows_the_fleet(tmp_path: Path, demo: Demo):
    with Demo(tmp_path, name="b", models=["other"], pace=0) as second:
        host = Host(
            tmp_path, backend_toml(demo, second) + "[health_check]\ninterval_seconds = 0.2\n"
        )
        with host.health() as health:
            health.wait_ready()
            assert health.notify.status() == "2 of 2 backends healthy, 3 models"
            second.stop()
            until(lambda: health.notify.status() == "1 of 2 backends healthy, 2 models")
        host.close()


def pings(service: Service) -> list[float]:
    return [told.at for told in service.notify.having("WATCHDOG")]


def silent_for(service: Service, seconds: float) -> bool:
    return time.monotonic() - max(pings(service)) > seconds


WATCHDOG_S = 0.6


@pytest.fixture
def watched(host: Host) -> Iterator[Service]:
    with host.health(watchdog_s=WATCHDOG_S) as health:
        health.wait_ready()
        until(lambda: len(pings(health)) > 6)
        assert {told.pid for told in health.notify.having("WATCHDOG")} == {health.pid}
        yield health


def test_a_stopped_process_stops_the_pings(watched: Service):
    watched.send(signal.SIGSTOP)
    until(lambda: silent_for(watched, 2 * WATCHDOG_S))
    seen = len(pings(watched))
    watched.send(signal.SIGCONT)
    until(lambda: len(pings(watched)) > seen + 2)


def test_a_blocked_event_loop_stops_the_pings(host: Host, watched: Service):
    """Reading a configuration that never comes blocks the loop; systemd then ends the process,
    and starts it anew."""
    good = host.file.read_text()
    host.file.unlink()
    os.mkfifo(host.file)
    watched.send(signal.SIGHUP)
    until(lambda: silent_for(watched, 2 * WATCHDOG_S))
    assert watched.stop(number=signal.SIGABRT) == -signal.SIGABRT
    host.file.unlink()
    host.file.write_text(good)
    with host.health() as again:
        again.wait_ready()
        assert again.notify.status() == "1 of 1 backend healthy, 2 models"


# Restarts and reloads


@pytest.fixture
def serving(host: Host) -> Iterator[tuple[Service, Service]]:
    with host.health() as health:
        health.wait_ready()
        with host.gateway() as gateway:
            gateway.wait_ready()
            yield gateway, health


def test_no_connection_is_refused_while_the_gateway_restarts(
    host: Host, serving: tuple[Service, Service]
):
    gateway, _ = serving
    with Load(host) as load:
        assert gateway.stop() == 0
        # Nothing serves now: connections wait where systemd holds the socket.
        waiting = [
            socket.create_connection(("127.0.0.1", host.port), timeout=20) for _ in range(50)
        ]
        body = json.dumps(chat("x", "demo-small", max_tokens=2).body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        for sock in waiting:
            sock.sendall(head.encode() + body)
        with host.gateway() as again:
            again.wait_ready()
            for sock in waiting:
                assert sock.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
                sock.close()
            load.goes_on()
            load.assert_none_failed()


def test_a_stop_lets_a_stream_end(tmp_path: Path):
    with Demo(tmp_path, name="slow", models=["slow"], pace=40) as slow:
        host = Host(tmp_path, backend_toml(slow))
        with host.health() as health, host.gateway() as gateway:
            health.wait_ready()
            gateway.wait_ready()
            ended: list[tuple[int, bytes]] = []
            stream = threading.Thread(
                target=run,
                args=(host.port, [chat("stream", "slow", stream=True)]),
                kwargs={
                    "concurrency": 1,
                    "seen": lambda _, status, content: ended.append((status, content)),
                },
            )
            stream.start()
            until(lambda: slow.tally()["open"] == 1)
            assert gateway.stop() == 0
            stream.join(10)
            ((status, content),) = ended
            assert status == 200
            assert content.endswith(b"data: [DONE]\n\n")
        host.close()


def test_reload_under_load_fails_no_request(host: Host, serving: tuple[Service, Service]):
    gateway, health = serving
    workers = until(lambda: two(processes_of(gateway.pid)))
    good = host.file.read_text()
    with Load(host) as load:
        for number in range(5):
            host.file.write_text(f'{good}[routing.aliases]\n"nick-{number}" = "demo-small"\n')
            done = gateway.unit.run("ExecReload")
            assert (done.returncode, done.stdout) == (0, "Reloaded: 1 backend.\n"), done.stderr
        host.file.write_text("[routing]\nstrategie = 1\n")
        refused = health.unit.run("ExecReload")
        assert refused.returncode == 2
        assert "did you mean strategy?" in refused.stderr
        assert health.notify.status().endswith("; the configuration file is wrong and not in use")
        host.file.write_text(good)
        assert health.unit.run("ExecReload").returncode == 0
        load.goes_on()
    load.assert_none_failed()
    assert processes_of(gateway.pid) == workers
    told = [
        key for told in health.notify.told for key in told.fields if key in ("RELOADING", "READY")
    ]
    assert told == ["READY"] + ["RELOADING", "READY"] * 7
    assert health.notify.status() == "1 of 1 backend healthy, 2 models"


def test_hup_replaces_the_workers_and_says_when(host: Host, serving: tuple[Service, Service]):
    gateway, _ = serving
    old = set(processes_of(gateway.pid))
    with Load(host) as load:
        gateway.send(signal.SIGHUP)
        until(
            lambda: len(now := set(processes_of(gateway.pid))) == 2 and not old & now, within_s=20
        )
        load.goes_on()
    load.assert_none_failed()
    began = gateway.notify.having("RELOADING")
    assert [told.pid for told in began] == [gateway.pid]
    assert any(
        told.at > began[0].at and told.pid not in old for told in gateway.notify.having("READY")
    )


def test_the_health_process_restarts_without_a_failed_request(
    host: Host, serving: tuple[Service, Service]
):
    gateway, health = serving
    with Load(host) as load:
        before = gateway.scrape()
        assert health.stop() == 0
        until(lambda: gateway.scrape().value("nexus_health_process_up") == 0)
        with host.health() as again:
            again.wait_ready()
            after = gateway.scrape()
            assert after.value("nexus_health_process_up") == 1
            assert after.total("nexus_requests_total") > before.total("nexus_requests_total")
            probes = [s.total("nexus_backend_latency_seconds_count") for s in (before, after)]
            assert probes[1] > probes[0]
            load.goes_on()
    load.assert_none_failed()
