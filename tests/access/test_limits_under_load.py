"""Limits while many clients use them, leave, and while workers are killed or stopped.

The long run of clients that leave is part of `make check-long`.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.access.limited import WAYS, keys_toml, open_stream, own_limits, send
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

STOP = """
import itertools, os, random, signal, sys, time
from pathlib import Path
from nexus.fleet.locks import LockFile

lock, pids = LockFile(Path(sys.argv[1])), [int(pid) for pid in sys.argv[2:]]
for pid in itertools.cycle(pids):
    os.kill(pid, signal.SIGSTOP)
    for _ in range(25):  # a worker that runs releases it
        if lock.acquire_file():
            lock.release_file()
            break
        time.sleep(0.002)
    else:
        print(pid)
        break
    os.kill(pid, signal.SIGCONT)
    time.sleep(random.random() / 1000)
"""
CONFIG = """
[auth]
mode = "keys"
[[limits]]
name = "places"
match = { key = "places" }
parallel = 5
[[limits]]
name = "leaving"
match = { key = "leaving" }
parallel = 20
tokens = "1M/d"
[[limits]]
name = "reload"
match = { key = "reload" }
requests = "40/s"
[[limits]]
name = "stopped"
match = { key = "stopped" }
requests = "4k/d"
""" + keys_toml("places", "leaving", "reload", "stopped")


@pytest.fixture(scope="module")
def demo(module_dir) -> Iterator[Demo]:
    with Demo(module_dir, name="demo", models=["demo-small"], pace=0) as demo:
        yield demo


@pytest.fixture(scope="module", params=WAYS)
def way(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def counted(way, tmp_path_factory) -> Iterator[Demo]:
    """A backend of its own for each gateway: it remembers the most streams at once."""
    directory = tmp_path_factory.mktemp("counted")
    with Demo(directory, name="counted", models=["demo-counted"], pace=20, length=2000) as counted:
        yield counted


@pytest.fixture(scope="module")
def slow(module_dir) -> Iterator[Demo]:
    with Demo(module_dir, name="slow", models=["demo-slow"], pace=20, length=2000) as slow:
        yield slow


@pytest.fixture(scope="module")
def gateway(way, tmp_path_factory, demo, slow, counted) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("load")
    config = CONFIG + backend_toml(demo, slow, counted)
    with Gateway(directory, config, workers=4, environ=WAYS[way]) as gateway:
        yield gateway


def places(gateway, id_: str) -> int:
    return own_limits(gateway, id_)[id_, "parallel"]["used"]


def in_parallel(count: int, task) -> None:
    threads = [threading.Thread(target=task, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_a_backend_never_sees_more_streams_than_the_limit(gateway, counted):
    heads = []

    def stream(_: int) -> None:
        with closing(open_stream(gateway, "places", model="demo-counted")) as client:
            heads.append(client.recv(12))
            all_started.wait(60)

    until(lambda: places(gateway, "places") == 0)
    all_started = threading.Barrier(51)
    threads = [threading.Thread(target=stream, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    all_started.wait(60)
    for thread in threads:
        thread.join(60)
    # 503 if the host is so busy that the lock was not free in time.
    assert set(heads) <= {b"HTTP/1.1 200", b"HTTP/1.1 429", b"HTTP/1.1 503"}
    assert heads.count(b"HTTP/1.1 200") == 5
    assert counted.tally()["most_open"] == 5
    until(lambda: places(gateway, "places") == 0)


def test_the_places_of_a_killed_worker_are_free(gateway):
    until(lambda: places(gateway, "places") == 0)
    with ExitStack() as clients:
        streams = [
            clients.enter_context(open_stream(gateway, "places", model="demo-slow"))
            for _ in range(5)
        ]
        assert [stream.recv(12) for stream in streams] == [b"HTTP/1.1 200"] * 5
        assert send(gateway, "places").status == 429
        killed = random.choice(gateway.worker_pids())
        os.kill(killed, signal.SIGKILL)
        until(lambda: not alive(killed))
        lost = sum(map(has_ended, streams))
        assert until(lambda: places(gateway, "places") == 5 - lost, within_s=5)
        more = [
            clients.enter_context(open_stream(gateway, "places", model="demo-slow"))
            for _ in range(lost)
        ]
        assert [stream.recv(12) for stream in more] == [b"HTTP/1.1 200"] * lost
        assert places(gateway, "places") == 5
    until(lambda: places(gateway, "places") == 0)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def has_ended(stream: socket.socket) -> bool:
    """Whether the gateway has closed a connection, once all that it sent is read."""
    stream.setblocking(False)
    try:
        while stream.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize(
    "count", [200, pytest.param(1000, marks=pytest.mark.long, id="1000 clients")]
)
def test_clients_that_leave_at_any_moment_leave_no_place_in_use(gateway, count):
    rng = random.Random(1)
    plans = [(rng.random() < 0.5, rng.randrange(1200)) for _ in range(count)]

    def leave(number: int) -> None:
        for early, size in plans[number::10]:
            with closing(open_stream(gateway, "leaving", max_tokens=50)) as client:
                received = 0
                while not early and received < size and (data := client.recv(size - received)):
                    received += len(data)

    in_parallel(10, leave)
    gateway.settled()
    until(lambda: places(gateway, "leaving") == 0)
    assert gateway.scrape().value("nexus_accounting_imbalance") == 0


@contextmanager
def load(gateway, id_: str, clients: int) -> Iterator[list[tuple[float, float, int]]]:
    """Clients that send one request after the other: (start, end, status) of each."""
    replies: list[tuple[float, float, int]] = []
    ending = threading.Event()

    def client(_: int) -> None:
        while not ending.is_set():
            started = time.monotonic()
            try:
                status = send(gateway, id_).status
            except OSError:  # a worker that was stopped
                status = 0
            replies.append((started, time.monotonic(), status))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield replies
    finally:
        ending.set()
        for thread in threads:
            thread.join(60)


def test_a_reload_under_load_holds_at_once(gateway):
    text = gateway.file.read_text()
    with load(gateway, "reload", 6) as replies:
        until(lambda: any(status == 429 for *_, status in replies))
        gateway.file.write_text(text.replace('requests = "40/s"', 'requests = "20/s"'))
        subprocess.run(
            [sys.executable, "-m", "nexus", "reload", "-c", str(gateway.file)],
            capture_output=True,
            check=True,
        )
        reloaded = time.monotonic() + 1
        until(lambda: any(started > reloaded + 2 for started, *_ in replies))
    gateway.file.write_text(text)
    later = [reply for reply in replies if reply[0] > reloaded]
    took_s = max(end for _, end, _ in later) - reloaded
    admitted = sum(status == 200 for *_, status in later)
    assert 0 < admitted <= 20 + 20 * took_s


def test_a_worker_that_is_stopped_with_the_lock_does_not_stop_the_others(gateway):
    """Workers are stopped in turn until one of them holds the lock."""
    assert send(gateway, "stopped").status == 200
    [path] = gateway.run_dir.rglob("limits.db")
    before = gateway.settled()
    used = own_limits(gateway, "stopped")["stopped", "requests"]["used"]
    with load(gateway, "stopped", 6):
        pid = stop_with_lock(path, gateway.worker_pids())
        try:
            served = 0
            while served < 5:
                served += served_soon(gateway, "stopped")
        finally:
            os.kill(pid, signal.SIGCONT)
    after = gateway.settled()

    def moved(name: str) -> float:
        return after.total(name) - before.total(name)

    missed = moved("nexus_limit_lock_misses_total")
    assert missed >= 5
    counted = moved("nexus_upstream_attempts_total") - missed
    until(
        lambda: (
            abs(own_limits(gateway, "stopped")["stopped", "requests"]["used"] - used - counted) <= 2
        )
    )


def served_soon(gateway, id_: str) -> bool:
    """Whether a request is served that may also have come to the worker that is stopped."""
    with closing(open_stream(gateway, id_, stream=False, max_tokens=1)) as client:
        client.settimeout(1)
        try:
            return client.recv(12) == b"HTTP/1.1 200"
        except TimeoutError:
            return False


def stop_with_lock(path: Path, pids: list[int]) -> int:
    """Stop workers in turn until one of them holds the lock, and give its pid."""
    words = [sys.executable, "-c", STOP, str(path), *map(str, pids)]
    return int(subprocess.run(words, capture_output=True, check=True, timeout=60).stdout)
