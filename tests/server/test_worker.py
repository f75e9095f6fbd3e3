"""The end of a worker's listening."""

import socket

import gevent
import gevent.socket
import pytest
from gevent.pool import Pool
from gevent.server import StreamServer

from nexus.server.worker import _Listener


def answer(client: socket.socket, _: object) -> None:
    client.sendall(client.recv(100))


def ask_one_that_closes(kind: type[StreamServer]) -> bytes:
    """What a client gets that waits in the backlog while the server closes."""
    listener = gevent.socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    server = kind(listener, handle=answer, spawn=Pool(5))
    with socket.create_connection(listener.getsockname(), timeout=5) as client:
        client.sendall(b"hello")
        server.start()
        server.close()
        assert server.closed
        gevent.sleep(0.05)
        return client.recv(100)


def test_those_who_wait_at_the_close_are_served():
    assert ask_one_that_closes(_Listener) == b"hello"


def test_without_it_they_are_reset():
    """What it is for; were this to fail, it would not be needed any more."""
    with pytest.raises(ConnectionResetError):
        ask_one_that_closes(StreamServer)
