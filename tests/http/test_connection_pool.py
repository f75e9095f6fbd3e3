"""Connections to backends: TLS, large requests, and a client that leaves while one is made."""

import contextlib
import select
import socket
import ssl
import struct
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from nexus.config import BackendConfig
from nexus.errors import RequestFailed
from nexus.http.address import Address
from nexus.http.client_watch import ClientGone, DisconnectWatch
from nexus.http.connection_pool import Connection, ConnectionPool, EarlyResponse
from nexus.http.resolver import Resolver
from nexus.http.response_parser import MalformedResponse, ResponseParser

CONFIG = BackendConfig(name="b", url="http://x", connect_timeout_seconds=2)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that signs itself, with its key in the same file."""
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            file,
            "-out",
            f"{file}.crt",
        ],
        check=True,
        capture_output=True,
    )
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def connections() -> ConnectionPool:
    return ConnectionPool(time.monotonic)


def address(listener: socket.socket, *, tls: bool = False, trusted: Path | None = None) -> Address:
    url = f"http{'s' if tls else ''}://localhost:{listener.getsockname()[1]}"
    return Address.of(url, files=(str(trusted) if trusted else None, None, None))


def serve_tls(listener: socket.socket, certificate: Path) -> list[bytes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    got: list[bytes] = []

    def serve() -> None:
        sock, _ = listener.accept()
        try:
            with context.wrap_socket(sock, server_side=True) as secured:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += secured.recv(65536)
                body = head.partition(b"\r\n\r\n")[2]
                while len(body) < 3_000_000:
                    body += secured.recv(65536)
                got.append(body)
                secured.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except OSError:
            pass

    threading.Thread(target=serve, daemon=True).start()
    return got


def test_tls_with_a_certificate_that_is_trusted(listener, certificate):
    got = serve_tls(listener, certificate)
    connection = connections().acquire(
        address(listener, tls=True, trusted=certificate), CONFIG, watch=DisconnectWatch(None)
    )
    connection.send(
        b"POST / HTTP/1.1\r\n\r\n",
        b"x" * 3_000_000,
        DisconnectWatch(None),
        idle_s=5,
        deadline=time.monotonic() + 5,
    )
    while not connection.response.complete:
        connection.response.feed(connection.receive(DisconnectWatch(None), 5))
    assert connection.response.body() == b"ok"
    assert got == [b"x" * 3_000_000]
    connection.close()


def test_tls_with_one_that_is_not(listener, certificate):
    serve_tls(listener, certificate)
    with pytest.raises(RequestFailed) as failed:
        connections().acquire(address(listener, tls=True), CONFIG, watch=DisconnectWatch(None))
    assert failed.value.fault.code == "tls_failed"


def until_left(client: socket.socket, doing) -> None:
    """`doing` ends because the client leaves, and not before; its own limits raise other errors."""
    threading.Timer(0.2, client.close).start()
    started = time.monotonic()
    with pytest.raises(ClientGone):
        doing()
    assert time.monotonic() - started > 0.15


def test_client_that_leaves_while_the_backend_is_silent_in_the_handshake(listener):
    here, client = socket.socketpair()
    with here, client:
        watch = DisconnectWatch(here)
        handshake = partial(connections().acquire, address(listener, tls=True), CONFIG, watch=watch)
        until_left(client, handshake)


def test_client_that_leaves_while_the_backend_does_not_take_a_large_request(listener):
    here, client = socket.socketpair()
    connection = connections().acquire(address(listener), CONFIG, watch=DisconnectWatch(here))
    with here, client, contextlib.closing(connection):

        def send() -> None:
            connection.send(
                b"POST / HTTP/1.1\r\n\r\n",
                b"x" * 50_000_000,
                DisconnectWatch(here),
                idle_s=5,
                deadline=time.monotonic() + 5,
            )

        until_left(client, send)


@pytest.mark.parametrize("early", [b"413 Content Too Large", b"100 Continue", b"200 OK", b""])
def test_an_early_error_ends_a_large_request(listener, early):
    """Nothing else does: the backend may read on. Its connection is not used again."""
    pool, place = connections(), address(listener)
    connection = pool.acquire(place, CONFIG, watch=DisconnectWatch(None))
    sock, _ = listener.accept()
    with sock:
        sock.sendall(b"HTTP/1.1 %b\r\ncontent-length: 0\r\n\r\n" % early if early else b"HTTP/1.1 ")
        with pytest.raises(EarlyResponse if early[:1] == b"4" else TimeoutError):
            connection.send(
                b"POST / HTTP/1.1\r\n\r\n",
                b"x" * 50_000_000,
                DisconnectWatch(None),
                idle_s=0.2 if early[:1] != b"4" else 20,
                deadline=time.monotonic() + 20,
            )
        if early[:1] == b"4":
            connection.response.feed(connection.receive(DisconnectWatch(None), 5))
            assert (connection.response.status, connection.response.reusable) == (413, True)
            pool.release(place, connection, 60)
            assert connection.fileno() == -1
    connection.close()


def test_time_limits(listener):
    pool = connections()
    connection = pool.acquire(address(listener), CONFIG, watch=DisconnectWatch(None))
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        connection.send(
            b"POST / HTTP/1.1\r\n\r\n",
            b"x" * 50_000_000,
            DisconnectWatch(None),
            idle_s=9,
            deadline=time.monotonic() + 0.2,
        )
    assert 0.15 < time.monotonic() - began < 9, "the deadline ended it, not the idle limit"
    connection.close()
    with pytest.raises(RequestFailed) as failed:
        pool.acquire(
            address(listener, tls=True),
            BackendConfig(name="b", url="http://x", connect_timeout_seconds=0.2),
            watch=DisconnectWatch(None),
        )
    assert failed.value.fault.code == "connect_timeout"


@pytest.fixture
def deaf():
    """The address of a listener that takes no connection and refuses none, as a network does
    that drops packets."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()


def test_an_address_that_is_silent_keeps_nobody_from_the_next(listener, deaf):
    known = [
        (socket.AF_INET, socket.SOCK_STREAM, 0, "", at) for at in (deaf, listener.getsockname())
    ]
    pool = ConnectionPool(time.monotonic, Resolver(lambda *_: known))
    took = []
    for _ in range(2):
        began = time.monotonic()
        pool.acquire(Address.of("http://two.example"), CONFIG, watch=DisconnectWatch(None)).close()
        took.append(time.monotonic() - began)
    assert 0.8 < took[0] < 1.8, "half of the time is left for the second"
    assert took[1] < 0.5, "the one that answered is asked first"


def test_an_address_is_preferred_only_where_another_let_us_down(listener):
    """The resolver's order spreads connections over addresses; one that fails later is preferred
    no more."""
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen: it refuses
        refuses, first, second = (at.getsockname() for at in (bound, listener, other))
        order: list[tuple[str, int]] = []
        pool = ConnectionPool(
            time.monotonic,
            Resolver(lambda *_: [(socket.AF_INET, socket.SOCK_STREAM, 0, "", at) for at in order]),
        )

        def reached(*wanted: tuple[str, int]) -> tuple[str, int]:
            order[:] = wanted
            connection = pool.acquire(
                Address.of("http://two.example"), CONFIG, watch=DisconnectWatch(None)
            )
            with contextlib.closing(connection):
                found: tuple[str, int] = connection.sock.getpeername()
                return found

        assert [reached(first, second), reached(second, first)] == [first, second]
        assert reached(refuses, second, first) == second
        assert reached(first, second) == second
        other.close()
        assert reached(first, second) == first
        with pytest.raises(RequestFailed):
            reached(refuses)
        with socket.create_server(second) as again:
            assert reached(first, second) == first
            assert again.getsockname() == second


def test_all_addresses_are_silent(deaf):
    pool = ConnectionPool(
        time.monotonic,
        Resolver(lambda *_: [(socket.AF_INET, socket.SOCK_STREAM, 0, "", deaf)] * 20),
    )
    began = time.monotonic()
    with pytest.raises(RequestFailed) as failed:
        pool.acquire(
            Address.of("http://two.example"),
            BackendConfig(name="b", url="http://x", connect_timeout_seconds=0.4),
            watch=DisconnectWatch(None),
        )
    assert failed.value.fault.code == "connect_timeout"
    assert 0.3 < time.monotonic() - began < 20 * 0.4, "one limit for all of them"


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Pair:
    """A pool whose only connection has been used once: `far` is the backend's end."""

    def __init__(self, listener: socket.socket, response: bytes, *, ending: bool = False) -> None:
        self.now = 100.0
        self.told: list[Address] = []
        self.opened: list[Connection] = []
        self.pool = ConnectionPool(lambda: self.now, on_unsolicited=self.told.append)
        self.address = address(listener)
        self.listener = listener
        connection = self.acquire()
        self.far, _ = listener.accept()
        self.far.sendall(response)
        while True:
            connection.response.feed(connection.receive(DisconnectWatch(None), 5))
            if connection.response.complete or (ending and b"DONE" in connection.response.body()):
                break
        self.release(connection, ending=ending)

    def acquire(self):
        connection = self.pool.acquire(self.address, CONFIG, watch=DisconnectWatch(None))
        self.opened.append(connection)
        return connection

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.far.close()
        for connection in self.opened:
            connection.close()

    def release(self, connection, *, ending: bool = False) -> None:
        self.pool.release(self.address, connection, 30, ending=ending)

    def send(self, data: bytes) -> None:
        """Send from the backend's end, and wait until it is here."""
        self.far.sendall(data)
        [connection] = self.pool._idle[self.address]
        readable, _, _ = select.select([connection.sock], [], [], 5)
        assert readable

    def reused(self) -> bool:
        connection = self.acquire()
        connection.close()
        return connection.reused


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
DONE = HEAD + b"e\r\ndata: [DONE]\n\n\r\n"


@pytest.mark.parametrize("stray", [OK, b"x", b"\r\n"])
def test_a_connection_with_unsolicited_bytes_is_closed(listener, stray):
    """And no connections are kept to that backend for some minutes: the next ones might come
    later than is seen."""
    with Pair(listener, OK) as pair:
        pair.send(stray)
        connection = pair.acquire()
        assert not connection.reused
        assert pair.told == [pair.address]
        connection.response.feed(OK)
        pair.release(connection)
        assert not pair.reused()
        pair.now += 301
        fresh = pair.acquire()
        fresh.response.feed(OK)
        pair.release(fresh)
        assert pair.reused()
        assert pair.told == [pair.address]


def test_bytes_after_a_response_are_unsolicited(listener):
    with Pair(listener, OK) as pair:
        connection = pair.acquire()
        assert connection.reused
        connection.response = ResponseParser()
        with pytest.raises(MalformedResponse):
            connection.response.feed(OK + OK)
        pair.release(connection)
        assert pair.told == [pair.address]
        assert not pair.reused()


@pytest.mark.parametrize(
    "farewell", [b"", b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"]
)
def test_a_backend_may_close_an_idle_connection(listener, farewell):
    with Pair(listener, OK) as pair:
        pair.far.sendall(farewell)
        pair.far.close()
        select.select([pair.pool._idle[pair.address][0].sock], [], [], 5)
        assert not pair.reused()
        assert pair.told == []


def test_unsolicited_bytes_are_seen_when_an_old_connection_is_closed(listener):
    with Pair(listener, OK) as pair:
        pair.send(OK)
        other = pair.pool.acquire(pair.address, CONFIG, watch=DisconnectWatch(None), fresh=True)
        pair.opened.append(other)
        other.response.feed(OK)
        pair.now += 40
        pair.release(other)
        assert pair.told == [pair.address]


@pytest.mark.parametrize(
    ("late", "reused", "told"),
    [
        (b"0\r\n\r\n", True, 0),
        (b"6\r\ndata: \r\n0\r\n\r\n", True, 0),
        (b"", False, 0),
        (b"0\r\n", False, 0),
        (b"zz\r\n", False, 0),
        (b"0\r\n\r\n" + OK, False, 1),
    ],
)
def test_the_end_of_a_stream_may_come_after_done(listener, late, reused, told):
    """The request is over with `[DONE]`; the connection can carry another one only if the
    response ends cleanly."""
    with Pair(listener, DONE, ending=True) as pair:
        if late:
            pair.send(late)
        assert pair.reused() is reused
        assert len(pair.told) == told


def test_the_end_of_a_stream_and_the_connection(listener):
    with Pair(listener, DONE, ending=True) as pair:
        pair.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.far.close()
        assert not pair.reused()
        assert pair.told == []
