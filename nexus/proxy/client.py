"""The client's side of a request, as far as the engine needs it, and waiting for a backend while watching it."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


@dataclass(slots=True, kw_only=True)
class Request:
    """A request whose head was read.

    `body` reads the body up to a limit in bytes, or raises `RequestFailed`. `connection` is the client's socket where
    the server lets us watch it. `received` is on the monotonic clock.
    """

    method: str
    headers: list[tuple[str, str]]
    body: Callable[[int], bytes]
    received: float
    connection: socket.socket | None = None

    def header(self, name: str) -> str | None:
        name = name.lower()
        return next((value for key, value in self.headers if key.lower() == name), None)


def watchable(connection: object) -> socket.socket | None:
    """The client's socket where it can be looked at without reading from it; under TLS it cannot."""
    if isinstance(connection, socket.socket) and not isinstance(connection, ssl.SSLSocket):
        return connection
    return None


def wait_readable(upstream: socket.socket, client: socket.socket | None, timeout_s: float) -> None:
    """Block until the backend's socket has something to read.

    Raises `ClientGone` when the client closes meanwhile, `TimeoutError` when the time is over. Bytes that the client
    sends ahead are no sign that it left.
    """
    if isinstance(upstream, ssl.SSLSocket) and upstream.pending():
        return
    poller = select.poll()
    poller.register(upstream, select.POLLIN)
    if client is not None:
        poller.register(client, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll(max(timeout_s, 0) * 1000)}
        if not ready:
            raise TimeoutError
        if client is not None and client.fileno() in ready:
            if is_gone(client):
                raise ClientGone
            poller.unregister(client)
            client = None
        if upstream.fileno() in ready:
            return


def is_gone(client: socket.socket) -> bool:
    """Whether a readable client socket is at its end. It must be readable: this looks, and does not wait."""
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True
