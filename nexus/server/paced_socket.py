"""The socket from which gunicorn's parser reads a request, with a limit for the body as a whole."""

from __future__ import annotations

import socket
import time

import gevent

from nexus.server.body_pace import BodyPace

_PIECE = 64 * 1024


class PacedSocket:
    """Reads from a client's socket, without a limit of its own until `start_body` sets one."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._pace: BodyPace | None = None
        self._received = 0

    def start_body(self, pace: BodyPace) -> None:
        self._pace = pace

    def recv(self, size: int) -> bytes:
        """Raises TimeoutError if the body is too slow."""
        pace, client = self._pace, self._client
        # gunicorn asks for up to 1 MiB, and copies the rest of it at each read of 1 KiB.
        size = min(size, _PIECE)
        if pace is None:
            return client.recv(size)
        # A client that sends fast never lets `recv` wait, and gunicorn may parse each byte.
        gevent.sleep(0)
        remaining_s = pace.remaining_s(time.monotonic(), self._received)
        if remaining_s <= 0:
            raise TimeoutError
        write_timeout_s = client.gettimeout()
        client.settimeout(remaining_s)
        try:
            data = client.recv(size)
        finally:
            client.settimeout(write_timeout_s)
        self._received += len(data)
        return data
