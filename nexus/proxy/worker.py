"""gunicorn's gevent worker, with an end that does not wait for idle connections.

The stock worker counts a kept-alive connection as work in progress: with a balancer in front, which keeps some open,
every stop and every recycling would take the whole `graceful_timeout`.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

import gevent
import gevent.select
from gunicorn.workers.ggevent import GeventWorker

_LOOK_EVERY_S = 0.1
_IDLE_S = 1.0
"""A connection that was quiet for so long is ended at a stop. A busier one gets a request soon, and `Connection: close`
with its answer, which is the better end: a request that is on its way when a connection ends is lost on the client."""


class GatewayWorker(GeventWorker):  # type: ignore[misc]
    """Ends idle client connections once it is told to stop; requests in progress keep their grace."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle_since: dict[socket.socket, float] = {}
        self._ended: set[socket.socket] = set()

    def run(self) -> None:
        gevent.spawn(self._end_idle_connections)
        super().run()

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        self._idle_since[client] = time.monotonic()
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle_since.pop(client, None)
            self._ended.discard(client)

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> None:
        if sock in self._ended:
            raise StopIteration  # it came while the connection was being ended; its client sees that it was not served
        self._idle_since.pop(sock, None)
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            self._idle_since[sock] = time.monotonic()

    def _end_idle_connections(self) -> None:
        while True:
            gevent.sleep(_LOOK_EVERY_S)
            if self.alive:
                continue
            long_ago = time.monotonic() - _IDLE_S
            for client in [client for client, since in self._idle_since.items() if since < long_ago]:
                del self._idle_since[client]
                with contextlib.suppress(OSError):  # it may have closed by itself
                    self._end(client)

    def _end(self, client: socket.socket) -> None:
        # Over a duplicate: gevent fails whoever waits for a socket that is shut down, and a mere end is what is meant.
        with client.dup() as twin:
            if gevent.select.select([twin], [], [], 0)[0]:
                return  # a request has come after all
            self._ended.add(client)
            twin.shutdown(socket.SHUT_RD)
