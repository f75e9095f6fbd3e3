"""The client connections of a worker, and how each is closed when the worker stops."""

from __future__ import annotations

import _socket
import contextlib
import socket
import time
from collections.abc import Collection, Mapping

import gevent

from nexus.access.callers import Caller
from nexus.http.client_watch import KeyBlocked, Stopping

_IDLE_S = 1.0
"""A connection that was quiet for so long is closed at a stop. A busier one soon gets another
request, whose response says `Connection: close`. That is the better end: closing a connection loses
a request that is already on its way."""


class ClientConnection:
    """A client's connection, and the greenlet that serves it.

    Attributes:
        idle_since: When its last request ended, on the monotonic clock; None while one is served.
        proxied: Whether that request goes to a proxied endpoint.
        closing: It was shut down while idle.
        head_s: How long the head of the request took to arrive.
    """

    __slots__ = ("closing", "greenlet", "head_s", "idle_since", "proxied")

    def __init__(self) -> None:
        self.greenlet = gevent.getcurrent()
        self.idle_since: float | None = time.monotonic()
        self.closing = False
        self.proxied = True
        self.head_s = 0.0

    def request_started(self, *, proxied: bool) -> None:
        """A request has come. `proxied` is of this request, whatever came before it."""
        self.idle_since = None
        self.proxied = proxied

    def request_ended(self) -> None:
        """The connection carries no request, or only the start of a head."""
        self.idle_since = time.monotonic()


class ClientConnections(dict[socket.socket, ClientConnection]):
    """Every open connection of a worker, by its socket."""

    def close_idle(self) -> None:
        """Close connections that carry no request."""
        # This loop never yields to another greenlet, so a connection that is idle stays idle until
        # it is closed.
        quiet_since = time.monotonic() - _IDLE_S
        for client, held in self.items():
            if held.idle_since is not None and held.idle_since < quiet_since and not held.closing:
                with contextlib.suppress(OSError, ValueError):  # it may have closed by itself
                    held.closing = _shut_down_if_quiet(client)

    def close_viewers(self) -> None:
        """Cut responses that are not proxied: a page that is not read, or a dashboard that is
        watched."""
        for client, held in list(self.items()):
            if held.idle_since is None and not held.proxied:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def stop_requests(self) -> None:
        """Throw `Stopping` into every request that is still served."""
        for held in list(self.values()):
            if held.idle_since is None and isinstance(held.greenlet, gevent.Greenlet):
                held.greenlet.kill(Stopping, block=False)

    def end_requests(self, running: Mapping[int, Caller], keys: Collection[str]) -> None:
        """Throw `KeyBlocked` into the requests of these keys. `running` has the caller of each
        request by the `get_ident()` of its greenlet."""

        def end() -> None:
            for held in list(self.values()):
                caller = running.get(id(held.greenlet))
                if caller is not None and caller.key in keys:
                    held.greenlet.throw(KeyBlocked(caller))

        if running and keys:
            # In the hub's callback no request can end, and another start, before it is thrown into.
            gevent.get_hub().loop.run_callback(end)


def _shut_down_if_quiet(client: socket.socket) -> bool:
    """Shut down reading, so that whoever waits for a request sees an end; False if a request has
    come after all."""
    # Without gevent's wrapper, whose `shutdown` would raise in the greenlet that waits.
    raw = _socket.socket(fileno=client.fileno())
    try:
        raw.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        raw.shutdown(socket.SHUT_RD)
        return True
    finally:
        raw.detach()
    return False
