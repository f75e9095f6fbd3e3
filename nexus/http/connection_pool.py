"""The connection pool: opens connections to backends, and keeps idle ones for reuse."""

from __future__ import annotations

import _socket
import errno
import os
import re
import select
import socket
import ssl
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from nexus.config import BackendConfig
from nexus.errors import RequestFailed
from nexus.http.address import Address
from nexus.http.client_watch import ClientGone, DisconnectWatch, ReadinessNotifier
from nexus.http.exhaustion import ExhaustionMonitor
from nexus.http.resolver import AddrInfo, Resolver
from nexus.http.response_parser import MalformedResponse, ResponseParser
from nexus.http.tls import TlsContexts

READ_SIZE = 64 * 1024
_SWEEP_EVERY_S = 1.0
_GLANCE = 16
_IDLE_TOO_LONG = b"HTTP/1.1 408 "
"""The response that some servers send before they close an idle connection."""
_REFUSED = re.compile(rb"HTTP/1\.[01] [345]").match
_DISTRUST_S = 300.0
"""For how long no connections are kept to a backend that sent bytes without a request."""
_PREFERRED_S = 300.0
"""For how long a working address is tried first after another one failed."""


class EarlyResponse(ConnectionError):
    """The backend refused the request before it had read it."""


class Connection:
    """One connection to a backend, used by one request at a time.

    Attributes:
        reused: It has carried a request before.
        refused: The backend refused a request that was not sent whole.
        good_until: When it will have been idle for too long to be reused.
        ends: When it becomes too old to be kept. A new connection resolves the name again.
    """

    def __init__(self, sock: _socket.socket, *, reused: bool) -> None:
        self.sock = sock
        self.tls = isinstance(sock, ssl.SSLSocket)
        self.reused = reused
        self.unsolicited = self.refused = False
        self.good_until = 0.0
        self.ends = float("inf")
        self.response = ResponseParser()
        self.notifier: ReadinessNotifier | None = None

    def send(
        self, head: bytes, body: bytes, watch: DisconnectWatch, *, idle_s: float, deadline: float
    ) -> None:
        """Send a request. Its response is for a new `response` to read.

        The backend may read nothing for `idle_s`, and must have read all by `deadline`. Raises
        `ClientGone`, `TimeoutError`, or OSError, of which `EarlyResponse` means that the response
        can be read.
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
                watch.wait(self.sock.fileno(), self._writable_or_refused(), timeout_s)
            except ssl.SSLWantReadError:
                watch.wait(self.sock.fileno(), select.POLLIN, timeout_s)

    def _writable_or_refused(self) -> int:
        """What to wait for while the backend does not read the request.

        Raises `EarlyResponse` if it has sent an error meanwhile (RFC 9112, section 9.5).
        """
        if self.tls:
            return select.POLLOUT
        try:
            start = self.sock.recv(_GLANCE, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return select.POLLOUT | select.POLLIN
        if _REFUSED(start):
            self.refused = True
            raise EarlyResponse("it refused the request before it had read it")
        return select.POLLOUT

    def receive(self, watch: DisconnectWatch, timeout_s: float) -> bytes:
        """The next bytes, to be fed to `response`; empty if the backend closed the connection.

        Raises `ClientGone`, `TimeoutError`, or OSError.
        """
        while True:
            if not (self.tls and self._pending()):
                watch.wait_readable(self, timeout_s)
            try:
                return self.sock.recv(READ_SIZE)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue  # only a part of a TLS record has arrived

    def is_quiet(self) -> bool:
        """Whether the connection can carry another request.

        Its last response must have ended, and nothing may have arrived after it. A stream is over
        with `[DONE]`, so its response may end while the connection is idle. Other bytes are
        `unsolicited`: they would be read as the next response.
        """
        response, notifier = self.response, self.notifier
        # The event loop watches the connection. A system call for bytes that arrived since its last
        # iteration would cost 6 % of a request.
        if notifier is not None and not notifier.early and not (self.tls and self._pending()):
            return response.reusable
        for _ in range(2):
            size = _GLANCE if response.complete else READ_SIZE
            try:
                data = (
                    self.sock.recv(size) if self.tls else self.sock.recv(size, socket.MSG_DONTWAIT)
                )
            except (BlockingIOError, ssl.SSLWantReadError):
                return response.reusable
            except OSError:
                return False
            if not data or response.complete:
                self.unsolicited = bool(data) and not data.startswith(_IDLE_TOO_LONG)
                return False
            try:
                response.feed(data)
            except MalformedResponse:
                self.unsolicited = response.overrun
                return False
            response.body()
        return False

    def _pending(self) -> int:
        """Decrypted bytes that TLS holds, for which the socket is not readable."""
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
    """Idle connections by address. Safe from any greenlet or thread.

    It needs no lock, because `pop` and `append` of a deque are atomic.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        resolver: Resolver | None = None,
        *,
        on_unsolicited: Callable[[Address], None] = lambda _: None,
    ) -> None:
        """`on_unsolicited` is called for each connection closed because of unsolicited bytes."""
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
        """A connection to the backend, for one request:

        1. The idle connection that was used last, if it can be reused.
        2. If it cannot, it is closed, and the next one is tried.
        3. Without one, or with `fresh`, a new connection.

        Raises `RequestFailed` if the backend cannot be reached, with the error that `reason`
        describes as its cause, and `ClientGone` if the client disconnects meanwhile.
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
        """Close an idle connection after `is_quiet`."""
        connection.close()
        if connection.unsolicited:
            self._distrust(address)

    def _distrust(self, address: Address) -> None:
        """Keep no connections to a backend that sends unsolicited bytes."""
        self._distrusted[address] = self._clock() + _DISTRUST_S
        self._close_idle(self._idle.pop(address, deque()))
        self._on_unsolicited(address)

    def _connect(
        self, address: Address, config: BackendConfig, watch: DisconnectWatch
    ) -> Connection:
        deadline = self._clock() + config.connect_timeout_seconds
        resolved = self._resolve(address, config, watch, deadline)
        failure: Exception | None = None
        for remaining, (family, kind, protocol, _, target) in zip(
            range(len(resolved), 0, -1), resolved, strict=True
        ):
            sock = self._new_socket(address, family, kind, protocol)
            try:
                # An address that does not respond must leave time for the others.
                _connect_watching(sock, target, watch, (deadline - self._clock()) / remaining)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                failure = error
                if target == self._preferred.get(address, (None,))[0]:
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
                    self._preferred[address] = target, self._clock() + _PREFERRED_S
                return connection
        if isinstance(failure, TimeoutError):
            raise RequestFailed(
                "connect_timeout", f"Backend {config.name} did not accept the connection in time."
            ) from failure
        raise RequestFailed(
            "connect_failed", f"Backend {config.name} cannot be reached."
        ) from failure

    def _resolve(
        self, address: Address, config: BackendConfig, watch: DisconnectWatch, deadline: float
    ) -> Sequence[AddrInfo]:
        """The addresses of the backend, in the resolver's order; a preferred one comes first."""
        try:
            resolved = self._resolver.resolve(
                address.host, address.port, watch, deadline - self._clock()
            )
        except TimeoutError as error:
            raise RequestFailed(
                "connect_timeout", f"Backend {config.name}: its name was not resolved in time."
            ) from error
        except (OSError, UnicodeError) as error:
            if self._exhaustion.detects(error):
                raise self._exhaustion.failure() from error
            raise RequestFailed(
                "dns_failed", f"Backend {config.name}: its name cannot be resolved."
            ) from error
        preferred, until = self._preferred.get(address, (None, 0.0))
        if self._clock() < until:
            return sorted(resolved, key=lambda info: info[4] != preferred)
        return resolved

    def _new_socket(self, address: Address, *kind: int) -> _socket.socket:
        """A socket of the C module, without the wrappers of the standard library and gevent.

        TLS needs the standard library's. Raises `RequestFailed`, which does not blame the backend.
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
                "connect_timeout",
                f"Backend {config.name} did not complete the TLS handshake in time.",
            ) from error
        except OSError as error:  # ssl.SSLError included
            sock.close()
            if self._exhaustion.detects(error):  # it reads files of certificates
                raise self._exhaustion.failure() from error
            raise RequestFailed("tls_failed", f"Backend {config.name}: TLS failed.") from error

    def release(
        self, address: Address, connection: Connection, keepalive_s: float, *, ending: bool = False
    ) -> None:
        """Keep the connection for another request if its response allows that; else close it.

        With `ending`, the end of the response may still arrive while the connection is idle.
        """
        response = connection.response
        now = self._clock()
        keep = not connection.refused and (response.reusable or (ending and not response.complete))
        if not keep or (self._distrusted and now < self._distrusted.get(address, 0.0)):
            connection.close()
            if response.overrun:
                self._distrust(address)
            return
        connection.good_until = min(now + keepalive_s, connection.ends)
        self._idle[address].append(connection)
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_EVERY_S
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Close connections that were idle for too long, those to removed backends included."""
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
    sock: _socket.socket, target: object, watch: DisconnectWatch, timeout_s: float
) -> None:
    """Connect while watching the client. Raises `ClientGone`, `TimeoutError`, or OSError."""
    sock.setblocking(False)
    failed = sock.connect_ex(target)  # type: ignore[arg-type]
    if failed in (errno.EINPROGRESS, errno.EWOULDBLOCK):
        watch.wait(sock.fileno(), select.POLLOUT, timeout_s)
        failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        raise OSError(failed, os.strerror(failed))
