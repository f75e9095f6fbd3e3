"""gunicorn's gevent worker, with an end that does not wait for idle connections.

The stock worker counts a kept-alive connection as work in progress: with a balancer in front, which keeps some open,
every stop and every recycling would take the whole `graceful_timeout`.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import gevent
from gunicorn.workers.ggevent import GeventWorker

_LOOK_EVERY_S = 0.1


class GatewayWorker(GeventWorker):  # type: ignore[misc]
    """Ends idle client connections once it is told to stop; requests in progress keep their grace."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: set[socket.socket] = set()

    def run(self) -> None:
        gevent.spawn(self._end_idle_connections)
        super().run()

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        self._idle.add(client)
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle.discard(client)

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> None:
        self._idle.discard(sock)
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            self._idle.add(sock)

    def _end_idle_connections(self) -> None:
        while True:
            gevent.sleep(_LOOK_EVERY_S)
            if self.alive:
                continue
            while self._idle:
                # For reading only: a request that has arrived by now is still read, and answered. Over a duplicate,
                # since gevent fails whoever waits for a socket that is shut down, and a mere end is what is meant.
                with contextlib.suppress(OSError), self._idle.pop().dup() as twin:
                    twin.shutdown(socket.SHUT_RD)
