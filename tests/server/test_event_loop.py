"""Waits in the hub: their order, and what is left when one is over."""

import _socket
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from nexus.errors import RequestFailed
from nexus.http.client_watch import ClientGone
from nexus.http.connection_pool import Connection
from nexus.server.event_loop import HubDisconnectWatch, WaitScheduler
from nexus.server.stream_relay import BufferedWriter, StreamRelay

LONG_S = 10.0


class Sockets:
    """A client's and a backend's connection, with their far ends."""

    def __init__(self, scheduler: WaitScheduler) -> None:
        self.client, self.far_client = socket.socketpair()
        self.client.setblocking(False)
        near, self.far_backend = _socket.socketpair()
        near.setblocking(False)
        self.backend = Connection(near, reused=False)
        self.watch = HubDisconnectWatch(self.client, scheduler)

    def close(self) -> None:
        self.watch.close()
        self.backend.close()
        for sock in (self.client, self.far_client, self.far_backend):
            sock.close()


@pytest.fixture
def sockets() -> Iterator[list[Sockets]]:
    scheduler = WaitScheduler()
    pairs = [Sockets(scheduler) for _ in range(5)]
    yield pairs
    for one in pairs:
        one.close()


def test_ready_waiters_wake_in_the_order_of_their_waits(sockets):
    woken: list[int] = []

    def serve(number: int) -> None:
        sockets[number].watch.wait_readable(sockets[number].backend, LONG_S)
        woken.append(number)

    started = [3, 0, 4, 1, 2]
    greenlets = [gevent.spawn(serve, number) for number in started]
    gevent.sleep(0)
    for number in range(5):
        sockets[number].far_backend.send(b"x")
    gevent.joinall(greenlets, timeout=5, raise_error=True)
    assert woken == started


def test_stream_that_closes_its_connection_leaves_no_watcher(sockets):
    """libev aborts the process if it changes a watcher on a closed descriptor."""
    one = sockets[0]

    def feed(data: bytes) -> bytes:
        if not data:
            body.ended = True
            one.backend.close()
        return data

    body: Any = SimpleNamespace(
        ended=False,
        silence_limit=lambda _: (LONG_S, RequestFailed("stream_idle")),
        idle_s=lambda: 0.0,
        next_check_s=lambda _: LONG_S,
        ping=lambda _: b"",
        feed_chunk=feed,
        release=lambda: None,
    )

    def serve() -> Any:
        one.watch.wait_readable(one.backend, LONG_S)
        notifier = one.backend.notifier
        writer = BufferedWriter(one.watch.sock)
        StreamRelay(body, one.backend, writer, timeout_s=LONG_S).run()
        return notifier

    greenlet = gevent.spawn(serve)
    gevent.sleep(0)
    one.far_backend.send(b"x")
    one.far_backend.close()
    assert not greenlet.get(timeout=5)._watcher.active


def test_closing_a_watch_ends_its_wait(sockets):
    one = sockets[0]
    greenlet = gevent.spawn(one.watch.wait_readable, one.backend, LONG_S)
    gevent.sleep(0)
    one.watch.close()
    with pytest.raises(ClientGone):
        greenlet.get(timeout=5)
    with pytest.raises(ClientGone):
        one.watch.wait_readable(one.backend, LONG_S)
