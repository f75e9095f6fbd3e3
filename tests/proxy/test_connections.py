"""Connections to backends: TLS, large requests, and a client that leaves while one is made."""

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest

from nexus.backends.address import Address
from nexus.config import BackendConfig
from nexus.errors import RequestFailed
from nexus.proxy.client import ClientGone, Watch
from nexus.proxy.connections import Connections
from nexus.proxy.names import Names

CONFIG = BackendConfig(name="b", url="http://x", connect_timeout_seconds=2)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that signs itself, with its key in the same file."""
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", file, "-out", f"{file}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def connections(trusted: Path | None = None) -> Connections:
    made = Connections(time.monotonic)
    if trusted is not None:
        made._tls.load_verify_locations(trusted)
    return made


def address(listener: socket.socket, *, tls: bool = False) -> Address:
    return Address.of(f"http{'s' if tls else ''}://localhost:{listener.getsockname()[1]}")


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
    connection = connections(certificate).open(address(listener, tls=True), CONFIG, watch=Watch(None))
    connection.send(b"POST / HTTP/1.1\r\n\r\n", b"x" * 3_000_000, Watch(None), idle_s=5, deadline=time.monotonic() + 5)
    while not connection.answer.complete:
        connection.answer.feed(connection.receive(Watch(None), 5))
    assert connection.answer.body() == b"ok"
    assert got == [b"x" * 3_000_000]
    connection.close()


def test_tls_with_one_that_is_not(listener, certificate):
    serve_tls(listener, certificate)
    with pytest.raises(RequestFailed) as failed:
        connections().open(address(listener, tls=True), CONFIG, watch=Watch(None))
    assert failed.value.fault.name == "tls_failed"


def leaves(client: socket.socket, doing, *arguments) -> float:
    """How long after the client left `doing` ends."""
    threading.Timer(0.2, client.close).start()
    began = time.monotonic()
    with pytest.raises(ClientGone):
        doing(*arguments)
    return time.monotonic() - began - 0.2


def test_client_that_leaves_while_the_backend_is_silent_in_the_handshake(listener):
    here, client = socket.socketpair()
    with here, client:
        open_ = lambda: connections().open(address(listener, tls=True), CONFIG, watch=Watch(here))  # noqa: E731
        assert -0.05 < leaves(client, open_) < 0.2


def test_client_that_leaves_while_the_backend_does_not_take_a_large_request(listener):
    here, client = socket.socketpair()
    connection = connections().open(address(listener), CONFIG, watch=Watch(here))
    with here, client, contextlib.closing(connection):

        def send() -> None:
            connection.send(
                b"POST / HTTP/1.1\r\n\r\n", b"x" * 50_000_000, Watch(here), idle_s=5, deadline=time.monotonic() + 5
            )

        assert -0.05 < leaves(client, send) < 0.2


def test_time_limits(listener):
    pool = connections()
    connection = pool.open(address(listener), CONFIG, watch=Watch(None))
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        connection.send(
            b"POST / HTTP/1.1\r\n\r\n", b"x" * 50_000_000, Watch(None), idle_s=9, deadline=time.monotonic() + 0.2
        )
    assert 0.15 < time.monotonic() - began < 1
    connection.close()
    with pytest.raises(RequestFailed) as failed:
        pool.open(
            address(listener, tls=True),
            BackendConfig(name="b", url="http://x", connect_timeout_seconds=0.2),
            watch=Watch(None),
        )
    assert failed.value.fault.name == "connect_timeout"


@pytest.fixture
def deaf():
    """The address of a listener that takes no connection and refuses none, as a network does that drops packets."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()


def test_an_address_that_is_silent_keeps_nobody_from_the_next(listener, deaf):
    known = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", at) for at in (deaf, listener.getsockname())]
    pool = Connections(time.monotonic, Names(lambda *_: known))
    took = []
    for _ in range(2):
        began = time.monotonic()
        pool.open(Address.of("http://two.example"), CONFIG, watch=Watch(None)).close()
        took.append(time.monotonic() - began)
    assert 0.8 < took[0] < 1.8, "half of the time is left for the second"
    assert took[1] < 0.5, "the one that answered is asked first"


def test_an_address_is_preferred_only_where_another_let_us_down(listener):
    """The resolver's order spreads connections over addresses; one that fails later is preferred no more."""
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen: it refuses
        refuses, first, second = (at.getsockname() for at in (bound, listener, other))
        order: list[tuple[str, int]] = []
        pool = Connections(
            time.monotonic, Names(lambda *_: [(socket.AF_INET, socket.SOCK_STREAM, 0, "", at) for at in order])
        )

        def reached(*wanted: tuple[str, int]) -> tuple[str, int]:
            order[:] = wanted
            connection = pool.open(Address.of("http://two.example"), CONFIG, watch=Watch(None))
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
    pool = Connections(time.monotonic, Names(lambda *_: [(socket.AF_INET, socket.SOCK_STREAM, 0, "", deaf)] * 2))
    began = time.monotonic()
    with pytest.raises(RequestFailed) as failed:
        pool.open(
            Address.of("http://two.example"),
            BackendConfig(name="b", url="http://x", connect_timeout_seconds=0.4),
            watch=Watch(None),
        )
    assert failed.value.fault.name == "connect_timeout"
    assert 0.3 < time.monotonic() - began < 1
