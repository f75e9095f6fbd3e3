"""Looking up names: within a limit, watching the client, once for all who wait."""

import socket
import threading
import time

import pytest

from nexus.config import BackendConfig
from nexus.errors import RequestFailed
from nexus.http.address import Address
from nexus.http.client_watch import ClientGone, DisconnectWatch
from nexus.http.connection_pool import ConnectionPool
from nexus.http.resolver import Resolver

CONFIG = BackendConfig(name="b", url="http://x", connect_timeout_seconds=0.3)
FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]


class Slow:
    """A resolver that responds when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, int]] = []
        self.go = threading.Event()

    def __call__(self, host: bytes, port: int):
        self.asked.append((host, port))
        self.go.wait(20)
        if host == b"nobody":
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return FOUND


@pytest.fixture
def slow():
    slow = Slow()
    yield slow
    slow.go.set()


def test_a_name_is_not_waited_for_longer_than_a_connection(slow):
    began = time.monotonic()
    with pytest.raises(RequestFailed) as failed:
        ConnectionPool(time.monotonic, Resolver(slow)).acquire(
            Address.of("http://name"), CONFIG, watch=DisconnectWatch(None)
        )
    assert failed.value.fault.code == "connect_timeout"
    assert time.monotonic() - began > 0.25


def test_a_client_that_leaves_meanwhile(slow):
    here, client = socket.socketpair()
    with here, client:
        threading.Timer(0.2, client.close).start()
        began = time.monotonic()
        with pytest.raises(ClientGone):
            Resolver(slow).resolve("name", 80, DisconnectWatch(here), 20)
        assert time.monotonic() - began > 0.15


def test_a_name_is_looked_up_once_at_a_time(slow):
    resolver = Resolver(slow)
    got: list[object] = []
    waiting = [
        threading.Thread(
            target=lambda: got.append(resolver.resolve("name", 80, DisconnectWatch(None), 20))
        )
        for _ in range(20)
    ]
    for one in waiting:
        one.start()
    with pytest.raises(TimeoutError):
        resolver.resolve("name", 80, DisconnectWatch(None), 0.2)
    slow.go.set()
    for one in waiting:
        one.join()
    assert got == [FOUND] * 20
    assert slow.asked == [(b"name", 80)]
    assert resolver.resolve("name", 80, DisconnectWatch(None), 20) == FOUND
    assert slow.asked == [(b"name", 80)] * 2, "and anew when it is wanted again"


def test_a_name_that_nobody_knows(slow):
    slow.go.set()
    with pytest.raises(RequestFailed) as failed:
        ConnectionPool(time.monotonic, Resolver(slow)).acquire(
            Address.of("http://nobody"), CONFIG, watch=DisconnectWatch(None)
        )
    assert failed.value.fault.code == "dns_failed"


@pytest.mark.parametrize(
    ("host", "place"),
    [("127.0.0.1", ("127.0.0.1", 80)), ("::1", ("::1", 80, 0, 0)), ("host9", None)],
)
def test_nobody_is_queried_for_an_address(slow, host, place):
    slow.go.set()
    found = Resolver(slow).resolve(host, 80, DisconnectWatch(None), 20)
    assert [entry[4] for entry in found] == ([place] if place else [FOUND[0][4]])
    assert bool(slow.asked) is (place is None)
