"""A listener's backlog when it closes."""

import select
import socket

import gevent
import gevent.socket
import pytest
from gevent.pool import Pool
from gevent.server import StreamServer

from nexus.server.listener import DrainingListener


def respond(client: socket.socket, _: object) -> None:
    client.sendall(client.recv(100))


def response_to_backlog(kind: type[StreamServer]) -> bytes:
    """What a client in the backlog receives while the server closes."""
    listener = gevent.socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    server = kind(listener, handle=respond, spawn=Pool(5))
    with socket.create_connection(listener.getsockname(), timeout=5) as client:
        client.sendall(b"hello")
        server.start()
        server.close()
        assert server.closed
        with gevent.Timeout(5):
            while not select.select([client], [], [], 0)[0]:
                gevent.sleep(0)
        return client.recv(100)


def test_backlog_is_served():
    assert response_to_backlog(DrainingListener) == b"hello"


def test_stock_server_resets_its_backlog():
    """The reason for `DrainingListener`: it can go when this fails."""
    with pytest.raises(ConnectionResetError):
        response_to_backlog(StreamServer)
