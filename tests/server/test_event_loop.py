"""Waiting in the hub: whose turn it is, and what is left when a wait is over."""

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
from nexus.server.event_loop import HubDisconnectWatch, StreamRelay, WaitScheduler

LONG_S = 10.0


class Ends:
    """A client and a backend, with their other ends."""

    def __init__(self, waits: WaitScheduler) -> None:
        self.client, self.far_client = socket.socketpair()
        self.client.setblocking(False)
        near, self.far_backend = _socket.socketpair()
        near.setblocking(False)
        self.backend = Connection(near, reused=False)
        self.watch = HubDisconnectWatch(self.client, waits)

    def close(self) -> None:
        self.watch.close()
        self.backend.close()
        for sock in (self.client, self.far_client, self.far_backend):
            sock.close()


@pytest.fixture
def ends() -> Iterator[list[Ends]]:
    waits = WaitScheduler()
    made = [Ends(waits) for _ in range(5)]
    yield made
    for one in made:
        one.close()


def test_ready_in_one_turn_they_go_on_in_the_order_in_which_they_began_to_wait(ends):
    woken: list[int] = []

    def serve(number: int) -> None:
        ends[number].watch.wait_for(ends[number].backend, LONG_S)
        woken.append(number)

    begun = [3, 0, 4, 1, 2]
    greenlets = [gevent.spawn(serve, number) for number in begun]
    gevent.sleep(0)
    for number in range(5):
        ends[number].far_backend.send(b"x")
    gevent.joinall(greenlets, timeout=5, raise_error=True)
    assert woken == begun


def test_a_stream_that_closes_its_connection_leaves_no_watcher_on_its_number(ends):
    """libev aborts the process where it changes what it watches of a number that is closed."""
    one = ends[0]

    def take(data: bytes) -> bytes:
        if not data:
            body.over = True
            one.backend.close()
        return data

    body: Any = SimpleNamespace(
        over=False,
        silence=lambda _: (LONG_S, RequestFailed("stream_idle")),
        quiet_s=lambda: 0.0,
        look_every_s=LONG_S,
        take_chunk=take,
    )

    def serve() -> Any:
        one.watch.wait_for(one.backend, LONG_S)
        arrivals = one.backend.arrivals
        StreamRelay(body, one.backend, one.watch, timeout_s=LONG_S).run()
        return arrivals

    greenlet = gevent.spawn(serve)
    gevent.sleep(0)
    one.far_backend.send(b"x")
    one.far_backend.close()
    assert not greenlet.get(timeout=5)._watcher.active


def test_who_waits_when_the_client_is_closed_is_told(ends):
    one = ends[0]
    greenlet = gevent.spawn(one.watch.wait_for, one.backend, LONG_S)
    gevent.sleep(0)
    one.watch.close()
    with pytest.raises(ClientGone):
        greenlet.get(timeout=5)
    with pytest.raises(ClientGone):
        one.watch.wait_for(one.backend, LONG_S)
