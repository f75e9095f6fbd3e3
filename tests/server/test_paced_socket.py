"""The socket from which gunicorn's parser reads a body."""

import time

import gevent
from gevent import socket

from nexus.config.records import Server
from nexus.server.body_pace import BodyPace
from nexus.server.paced_socket import PacedSocket


def test_a_client_that_is_always_ahead_keeps_nobody_waiting():
    client, server = socket.socketpair()
    with client, server:
        client.sendall(b"x" * 1000)
        paced = PacedSocket(server)
        paced.start_body(BodyPace(time.monotonic(), Server()))
        turns: list[int] = []
        read = 0

        def other() -> None:
            while read < 1000:
                turns.append(read)
                gevent.sleep(0)

        with gevent.spawn(other):
            for _ in range(10):
                read += len(paced.recv(100))
        assert turns == list(range(0, 1000, 100))


def test_a_read_takes_no_more_than_a_piece():
    """gunicorn copies the rest of what it has read at each KiB that it skips."""
    client, server = socket.socketpair()
    with client, server, gevent.spawn(client.sendall, b"x" * 200_000):
        paced = PacedSocket(server)
        paced.start_body(BodyPace(time.monotonic(), Server()))
        sizes: list[int] = []
        while sum(sizes) < 200_000:
            sizes.append(len(paced.recv(1024 * 1024)))
        assert max(sizes) <= 64 * 1024
