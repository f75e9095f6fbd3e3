"""Waiting for a backend while watching whether the client disconnects."""

from __future__ import annotations

import _socket
import select
import socket
import ssl
import time
from typing import Any, Protocol

from nexus.errors import RequestFailed

POLL_INTERVAL_S = 0.05
"""How often a client that has sent bytes ahead is checked: its socket stays readable, so events do
not show whether it has closed."""
_CLOSED_STATES = (7, 8)
"""TCP_CLOSE and TCP_CLOSE_WAIT of Linux, `include/net/tcp_states.h`."""


class ClientGone(Exception):
    """The client closed its connection before it had the response."""


class Stopping(BaseException):
    """Raised in a greenlet that still serves a request when the grace period has ended."""

    def failure(self, *, within_stream: bool) -> RequestFailed:
        """What the client gets: an error response, or an event if its stream has started."""
        message = "The gateway is being stopped."
        if within_stream:
            return RequestFailed("shutdown", message)
        return RequestFailed("stopping", message, headers={"retry-after": "1"})


class KeyBlocked(Stopping):
    """Raised in such a greenlet when the operators block the key of its request."""

    def __init__(self, caller: object) -> None:
        super().__init__(caller)
        self._message = f"The {caller} was blocked while it was used."

    def failure(self, *, within_stream: bool) -> RequestFailed:
        if within_stream:
            return RequestFailed("stream_key_blocked", self._message)
        headers = {"www-authenticate": "Bearer", "x-should-retry": "false"}
        return RequestFailed("key_blocked", self._message, headers=headers)


class ReadinessNotifier(Protocol):
    """Notifies a waiter that a connection is readable; belongs to the connection.

    Attributes:
        early: The connection became readable while nothing waited: it closed, or got unsolicited
            bytes.
        waiter: What waits for it.
    """

    early: bool
    waiter: Any

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


class Pollable(Protocol):
    """Something to wait for repeatedly, such as a connection. Its owner closes `notifier`."""

    notifier: ReadinessNotifier | None

    def fileno(self) -> int: ...


class DisconnectWatch:
    """Waits for descriptors and watches a client meanwhile, by `poll`, under any server."""

    def __init__(
        self, client: socket.socket | None, *, connection: socket.socket | None = None
    ) -> None:
        """`connection` is the client's socket if it cannot be watched."""
        self._client = client
        self._connection = client or connection

    def peer(self) -> str:
        """The IP address from which the client is connected; empty if that is not known."""
        try:
            address = self._connection.getpeername() if self._connection is not None else ""
        except OSError:
            return ""
        return str(address[0]) if isinstance(address, tuple) else ""

    def wait(self, fd: int | None, event: int, timeout_s: float) -> None:
        """Block until `event` (`select.POLLIN`, `POLLOUT`, or both) holds for `fd`; without `fd`,
        sleep.

        Raises `ClientGone` if the client closes meanwhile, and `TimeoutError`. Bytes that the
        client sends ahead do not count as a disconnect.
        """
        client, ahead = self._client, False
        poller = select.poll()
        if fd is not None:
            poller.register(fd, event)
        if client is not None:
            poller.register(client, select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while True:
            remaining_s = max(deadline - time.monotonic(), 0)
            pause_s = min(remaining_s, POLL_INTERVAL_S) if ahead else remaining_s
            ready = {descriptor for descriptor, _ in poller.poll(pause_s * 1000)}
            if client is not None and (ahead or client.fileno() in ready):
                if has_closed(client) if ahead else is_at_eof(client):
                    raise ClientGone
                if not ahead:
                    ahead = True
                    poller.unregister(client)
            if not ready and pause_s == remaining_s:
                raise TimeoutError
            if fd in ready:
                return

    def wait_readable(self, source: Pollable, timeout_s: float) -> None:
        """Block until `source` can be read. Raises what `wait` raises."""
        self.wait(source.fileno(), select.POLLIN, timeout_s)


def watchable(connection: object) -> socket.socket | None:
    """The client's socket if it can be peeked at; under TLS it cannot."""
    if isinstance(connection, socket.socket) and not isinstance(connection, ssl.SSLSocket):
        return connection
    return None


def is_at_eof(client: _socket.socket) -> bool:
    """Whether a client's socket that is readable is at its end. Does not block."""
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False  # Another reader was faster.
    except OSError:
        return True


def has_closed(client: _socket.socket) -> bool:
    """Whether a client has closed while bytes of it are unread; False if TCP does not show it."""
    try:
        state: int = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:
        return False
    return state in _CLOSED_STATES
