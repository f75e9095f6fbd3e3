"""Connections to backends: opened, kept for reuse while fresh, and closed at once when a request
is given up."""

from __future__ import annotations

import _socket
import errno
import os
import select
import socket
import ssl
import time
from collections import defaultdict, deque
from collections.abc import Callable

from nexus.config import BackendConfig
from nexus.errors import RequestFailed
from nexus.http.address import Address
from nexus.http.client_watch import ClientGone, DisconnectWatch, ReadinessNotifier
from nexus.http.exhaustion import ExhaustionMonitor
from nexus.http.resolver import Resolver
from nexus.http.response_parser import MalformedResponse, ResponseParser
from nexus.http.tls import TlsContexts

READ_SIZE = 64 * 1024
_SWEEP_EVERY_S = 1.0
_GLANCE = 16
_IDLE_TOO_LONG = b"HTTP/1.1 408 "
"""What some servers say before they close a connection that was idle."""
_DISTRUST_S = 300.0
"""For how long no connections are kept to a backend that sent bytes to which no request was
open."""
_PREFERRED_S = 300.0
"""For how long the address that answered when one before it did not is asked first."""


class Connection:
    """One connection to a backend, used by one request at a time.

    Attributes:
        reused: It has carried a request before.
        good_until: Until when it may be taken for another request; it was idle for too long then.
        ends: From then on it is not kept: a new connection looks the backend's name up again.
    """

    def __init__(self, sock: _socket.socket, *, reused: bool) -> None:
        self.sock = sock
        self.tls = isinstance(sock, ssl.SSLSocket)
        self.reused = reused
        self.unsolicited = False
        self.good_until = 0.0
        self.ends = float("inf")
        self.response = ResponseParser()
        self.notifier: ReadinessNotifier | None = None

    def send(
        self, head: bytes, body: bytes, watch: DisconnectWatch, *, idle_s: float, deadline: float
    ) -> None:
        """Send a request, whose answer is for a new `response` to read.

        The backend may be slow to take it, for `idle_s` at a time and until `deadline` in all.
        Raises `ClientGone`, `TimeoutError` or OSError.
        """
        for data in (head + body,) if len(body) < READ_SIZE else (head, body):
            sent = self._send_some(data, watch, idle_s)
            while sent < len(data):
                sent += self._send_some(
                    memoryview(data)[sent:], watch, min(idle_s, deadline - time.monotonic())
                )

    def _send_some(self, data: bytes | memoryview, watch: DisconnectWatch, timeout_s: float) -> int:
        while True:
            try:
                return self.sock.send(data)
            except (BlockingIOError, ssl.SSLWantWriteError):
                watch.wait(self.sock.fileno(), select.POLLOUT, timeout_s)
            except ssl.SSLWantReadError:
                watch.wait(self.sock.fileno(), select.POLLIN, timeout_s)

    def receive(self, watch: DisconnectWatch, timeout_s: float) -> bytes:
        """What the backend sent next; empty where it closed the connection. To be given to
        `response`.

        Raises `ClientGone`, `TimeoutError` or OSError.
        """
        while True:
            if not (self.tls and self._pending()):
                watch.wait_readable(self, timeout_s)
            try:
                return self.sock.recv(READ_SIZE)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue  # a piece of a TLS record

    def is_quiet(self) -> bool:
        """Whether the connection can carry another request: its last response has ended, and
        nothing came after it.

        A stream is over with `[DONE]`, so the end of its response may come only while the
        connection is idle. All other bytes that come then are `unsolicited`: they would be taken
        for the response to the next request.
        """
        answer, notifier = self.response, self.notifier
        # The event loop watches it. One more system call, for what came since its last turn, would
        # cost 6 % of a request.
        if notifier is not None and not notifier.early and not (self.tls and self._pending()):
            return answer.reusable
        for _ in range(2):
            size = _GLANCE if answer.complete else READ_SIZE
            try:
                data = (
                    self.sock.recv(size) if self.tls else self.sock.recv(size, socket.MSG_DONTWAIT)
                )
            except (BlockingIOError, ssl.SSLWantReadError):
                return answer.reusable
            except OSError:
                return False
            if not data or answer.complete:
                self.unsolicited = bool(data) and not data.startswith(_IDLE_TOO_LONG)
                return False
            try:
                answer.feed(data)
            except MalformedResponse:
                self.unsolicited = answer.overrun
                return False
            answer.body()
        return False

    def _pending(self) -> int:
        """Bytes that TLS has read already, which the socket does not show."""
        assert isinstance(self.sock, ssl.SSLSocket)
        return self.sock.pending()

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        if self.notifier is not None:
            self.notifier.close()
            self.notifier = None
        self.sock.close()


class ConnectionPool:
    """Idle connections by address. Safe from any greenlet or thread: a deque's pop and append
    are atomic."""

    def __init__(
        self,
        clock: Callable[[], float],
        resolver: Resolver | None = None,
        *,
        on_unsolicited: Callable[[Address], None] = lambda _: None,
    ) -> None:
        """`on_unsolicited` is told of each connection that was closed because of unsolicited
        bytes."""
        self._clock = clock
        self._on_unsolicited = on_unsolicited
        self._distrusted: dict[Address, float] = {}
        self._resolver = resolver or Resolver()
        self._exhaustion = ExhaustionMonitor()
        self._idle: defaultdict[Address, deque[Connection]] = defaultdict(deque)
        self._preferred: dict[Address, tuple[object, float]] = {}
        self._tls = TlsContexts()
        self._sweep_at = 0.0

    def acquire(
        self,
        address: Address,
        config: BackendConfig,
        *,
        watch: DisconnectWatch,
        fresh: bool = False,
    ) -> Connection:
        """A connection to the backend: the one used last, if it is still young, or a new one.

        Raises `RequestFailed` where the backend cannot be reached, `ClientGone` where the client
        leaves meanwhile. The cause of a `RequestFailed` is the error that `reason` puts in words.
        """
        idle = self._idle.get(address)
        while idle and not fresh:
            try:
                connection = idle.pop()
            except IndexError:
                break
            if connection.is_quiet() and self._clock() < connection.good_until:
                connection.reused = True
                return connection
            self._discard(address, connection)
        return self._connect(address, config, watch)

    def _discard(self, address: Address, connection: Connection) -> None:
        """Close an idle connection that `is_quiet` has looked at."""
        connection.close()
        if connection.unsolicited:
            self._distrust(address)

    def _distrust(self, address: Address) -> None:
        """Keep no connections to a backend whose responses may be taken for those to other
        requests."""
        self._distrusted[address] = self._clock() + _DISTRUST_S
        self._close_idle(self._idle.pop(address, deque()))
        self._on_unsolicited(address)

    def _connect(
        self, address: Address, config: BackendConfig, watch: DisconnectWatch
    ) -> Connection:
        deadline = self._clock() + config.connect_timeout_seconds
        try:
            found = self._resolver.resolve(
                address.host, address.port, watch, deadline - self._clock()
            )
        except TimeoutError as error:
            raise RequestFailed(
                "connect_timeout", f"Backend {config.name}: its name was not found in time."
            ) from error
        except (OSError, UnicodeError) as error:
            if self._exhaustion.detects(error):
                raise self._exhaustion.failure() from error
            raise RequestFailed(
                "dns_failed", f"Backend {config.name}: its name is not known."
            ) from error
        failure: Exception | None = None
        # In the resolver's order, unless one has let us down; none may use up the time in which
        # another could answer.
        preferred, until = self._preferred.get(address, (None, 0.0))
        places = (
            sorted(found, key=lambda one: one[4] != preferred) if self._clock() < until else found
        )
        for left, (family, kind, protocol, _, place) in zip(
            range(len(places), 0, -1), places, strict=True
        ):
            sock = self._new_socket(address, family, kind, protocol)
            try:
                _connect_watching(sock, place, watch, (deadline - self._clock()) / left)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                failure = error
                if place == preferred:
                    self._preferred.pop(address, None)
            except BaseException:
                sock.close()
                raise
            else:
                try:
                    connection = Connection(
                        self._secured(sock, address, config, watch, deadline), reused=False
                    )
                except RequestFailed:
                    self._preferred.pop(address, None)
                    raise
                connection.ends = self._clock() + config.max_connection_age_seconds
                if failure is not None:
                    self._preferred[address] = place, self._clock() + _PREFERRED_S
                return connection
        if isinstance(failure, TimeoutError):
            raise RequestFailed(
                "connect_timeout", f"Backend {config.name} took no connection in time."
            ) from failure
        raise RequestFailed(
            "connect_failed", f"Backend {config.name} cannot be reached."
        ) from failure

    def _new_socket(self, address: Address, *kind: int) -> _socket.socket:
        """A socket; but for TLS, which needs it, without what the standard library, or gevent, puts
        around each call.

        Raises `RequestFailed` if none can be had, which says nothing about the backend.
        """
        try:
            return (socket.socket if address.tls else _socket.socket)(*kind)
        except OSError as error:
            if self._exhaustion.detects(error):
                raise self._exhaustion.failure() from error
            raise RequestFailed(
                "connect_failed", f"No connection can be made to {address.host}."
            ) from error

    def _secured(
        self,
        sock: _socket.socket,
        address: Address,
        config: BackendConfig,
        watch: DisconnectWatch,
        deadline: float,
    ) -> _socket.socket:
        if not isinstance(sock, socket.socket):
            return sock
        try:
            context = self._tls.of(address.files)
            sock = secured = context.wrap_socket(
                sock, server_hostname=address.host, do_handshake_on_connect=False
            )
            while True:
                try:
                    secured.do_handshake()
                except ssl.SSLWantReadError:
                    watch.wait(secured.fileno(), select.POLLIN, deadline - self._clock())
                except ssl.SSLWantWriteError:
                    watch.wait(secured.fileno(), select.POLLOUT, deadline - self._clock())
                else:
                    return secured
        except ClientGone:
            sock.close()
            raise
        except TimeoutError as error:
            sock.close()
            raise RequestFailed(
                "connect_timeout", f"Backend {config.name} took no TLS connection in time."
            ) from error
        except OSError as error:  # ssl.SSLError is one
            sock.close()
            if self._exhaustion.detects(error):  # files of certificates are read here
                raise self._exhaustion.failure() from error
            raise RequestFailed("tls_failed", f"Backend {config.name}: TLS failed.") from error

    def release(
        self, address: Address, connection: Connection, keepalive_s: float, *, ending: bool = False
    ) -> None:
        """Keep the connection for another request if its response allows that; else close it.

        `ending`: of the response only its end may be missing, which is waited for while the
        connection is idle.
        """
        answer = connection.response
        now = self._clock()
        keep = answer.reusable or (ending and not answer.complete)
        if not keep or (self._distrusted and now < self._distrusted.get(address, 0.0)):
            connection.close()
            if answer.overrun:
                self._distrust(address)
            return
        connection.good_until = min(now + keepalive_s, connection.ends)
        self._idle[address].append(connection)
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_EVERY_S
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Close those that have been idle for too long, also to backends that are gone."""
        for address, idle in list(self._idle.items()):
            while idle and idle[0].good_until <= now:
                try:
                    connection = idle.popleft()
                except IndexError:
                    break  # another thread has taken it
                connection.is_quiet()
                self._discard(address, connection)

    def close(self) -> None:
        for idle in self._idle.values():
            self._close_idle(idle)

    @staticmethod
    def _close_idle(idle: deque[Connection]) -> None:
        while idle:
            idle.pop().close()


def _connect_watching(
    sock: _socket.socket, place: object, watch: DisconnectWatch, timeout_s: float
) -> None:
    """Connect, and give up at once when the client goes. Raises `ClientGone`, `TimeoutError` or
    OSError."""
    sock.setblocking(False)
    failed = sock.connect_ex(place)  # type: ignore[arg-type]
    if failed in (errno.EINPROGRESS, errno.EWOULDBLOCK):
        watch.wait(sock.fileno(), select.POLLOUT, timeout_s)
        failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        raise OSError(failed, os.strerror(failed))
