"""Connections to backends: opened, kept for reuse while fresh, and closed at once when a request is given up."""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Callable

from nexus.backends.address import Address
from nexus.config import BackendConfig
from nexus.errors import RequestFailed
from nexus.proxy.client import wait_readable
from nexus.proxy.http1 import AnswerReader

_READ_SIZE = 64 * 1024


class Connection:
    """One connection to a backend, used by one request at a time."""

    def __init__(self, sock: socket.socket, *, reused: bool) -> None:
        self.sock = sock
        self.reused = reused
        self.idle_since = 0.0
        self.answer = AnswerReader()

    def send(self, head: bytes, body: bytes, timeout_s: float) -> None:
        """Send a request. Raises OSError."""
        self.answer = AnswerReader()
        self.sock.settimeout(timeout_s)
        if len(body) < _READ_SIZE:
            self.sock.sendall(head + body)
        else:
            self.sock.sendall(head)
            self.sock.sendall(body)

    def receive(self, client: socket.socket | None, timeout_s: float) -> bool:
        """Take what the backend sent next; False where it closed the connection.

        Raises `ClientGone`, `TimeoutError`, `MalformedAnswer` or OSError.
        """
        wait_readable(self.sock, client, timeout_s)
        data = self.sock.recv(_READ_SIZE)
        self.answer.feed(data)
        return bool(data)

    def close(self) -> None:
        self.sock.close()


class Connections:
    """Idle connections by address. Safe from any greenlet or thread: a deque's pop and append are atomic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._idle: dict[Address, deque[Connection]] = {}
        self._tls = ssl.create_default_context()

    def open(self, address: Address, config: BackendConfig, *, fresh: bool = False) -> Connection:
        """A connection to the backend: the one used last, if it is still young, or a new one.

        Raises `RequestFailed` where the backend cannot be reached.
        """
        idle = self._idle.get(address)
        while idle and not fresh:
            try:
                connection = idle.pop()
            except IndexError:
                break
            if self._clock() - connection.idle_since < config.keepalive_seconds:
                connection.reused = True
                return connection
            connection.close()
        return self._connect(address, config)

    def _connect(self, address: Address, config: BackendConfig) -> Connection:
        try:
            sock = socket.create_connection((address.host, address.port), timeout=config.connect_timeout_seconds)
        except socket.gaierror as error:
            raise RequestFailed("connect_failed", f"Backend {config.name}: its name is not known.") from error
        except TimeoutError as error:
            raise RequestFailed("connect_timeout", f"Backend {config.name} took no connection in time.") from error
        except OSError as error:
            raise RequestFailed("connect_failed", f"Backend {config.name} cannot be reached.") from error
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls:
                sock = self._tls.wrap_socket(sock, server_hostname=address.host)
        except TimeoutError as error:
            sock.close()
            raise RequestFailed("connect_timeout", f"Backend {config.name} took no TLS connection in time.") from error
        except OSError as error:  # ssl.SSLError is one
            sock.close()
            raise RequestFailed("tls_failed", f"Backend {config.name}: TLS failed.") from error
        return Connection(sock, reused=False)

    def give_back(self, address: Address, connection: Connection) -> None:
        """Keep the connection for another request where its answer allows that; else close it."""
        if not connection.answer.reusable:
            connection.close()
            return
        connection.idle_since = self._clock()
        self._idle.setdefault(address, deque()).append(connection)

    def close(self) -> None:
        for idle in self._idle.values():
            while idle:
                idle.pop().close()
