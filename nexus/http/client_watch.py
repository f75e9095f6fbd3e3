"""The client's side of a request, as far as the engine needs it, and waiting for a backend while watching it."""

from __future__ import annotations

import _socket
import select
import socket
import ssl
import time
from typing import Any, Protocol


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


class Stopping(BaseException):
    """Thrown into what still serves a request when the gateway stops and its grace is over: say so, and end."""


class ReadinessNotifier(Protocol):
    """What a watch keeps for a source: it tells when something comes.

    What comes while nobody waits, such as an end, or bytes that nobody asked for, is noted in `early`.
    """

    early: bool
    waiter: Any

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


class Pollable(Protocol):
    """What is waited for again and again, such as a backend's connection; its owner closes its `arrivals`."""

    notifier: ReadinessNotifier | None

    def fileno(self) -> int: ...


class DisconnectWatch:
    """Waits for a descriptor, and watches a client meanwhile; this one by `poll`, which any server lets us do."""

    def __init__(self, client: socket.socket | None) -> None:
        self._client = client

    def wait(self, fd: int | None, event: int, timeout_s: float) -> None:
        """Block until `event` (`select.POLLIN` or `POLLOUT`) holds for `fd`.

        Raises `ClientGone` when the client closes meanwhile, `TimeoutError` when the time is over; with no `fd`, that
        is all there is to wait for. Bytes that the client sends ahead are no sign that it left.
        """
        client, ahead = self._client, False
        poller = select.poll()
        if fd is not None:
            poller.register(fd, event)
        if client is not None:
            poller.register(client, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(deadline - time.monotonic(), 0)
            pause_s = min(left_s, POLL_INTERVAL_S) if ahead else left_s
            ready = {found for found, _ in poller.poll(pause_s * 1000)}
            if client is not None and (ahead or client.fileno() in ready):
                if has_closed(client) if ahead else is_at_eof(client):
                    raise ClientGone
                if not ahead:
                    ahead = True
                    poller.unregister(client)
            if not ready and pause_s == left_s:
                raise TimeoutError
            if fd in ready:
                return

    def wait_readable(self, source: Pollable, timeout_s: float) -> None:
        """As `wait`, until the source can be read."""
        self.wait(source.fileno(), select.POLLIN, timeout_s)


_ENDED = (7, 8)  # TCP_CLOSE, TCP_CLOSE_WAIT
POLL_INTERVAL_S = 0.05
"""How often a client is looked at that has sent bytes ahead: it is readable then, and says no more by that."""


def watchable(connection: object) -> socket.socket | None:
    """The client's socket where it can be looked at without reading from it; under TLS it cannot."""
    if isinstance(connection, socket.socket) and not isinstance(connection, ssl.SSLSocket):
        return connection
    return None


def is_at_eof(client: _socket.socket) -> bool:
    """Whether a readable client socket is at its end. It must be readable: this looks, and does not wait."""
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False  # it was readable a moment ago
    except OSError:
        return True


def has_closed(client: _socket.socket) -> bool:
    """Whether a client has closed, though bytes of its are still to be read; never, where only TCP could tell."""
    try:
        return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _ENDED
    except OSError:
        return False
