"""Clients that speak TLS to gunicorn itself, by its options."""

import contextlib
import http.client
import socket
import ssl
import struct
import sys

import pytest

from nexus.fleet.run_directory import RunDirectory
from tests.support.certificates import Authority
from tests.support.polling import until
from tests.support.processes import Process, clean_environ, free_port

pytestmark = pytest.mark.e2e


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "ca")


@pytest.fixture
def port(tmp_path, authority):
    """A worker that serves TLS, and ends connections that bring no head within two seconds."""
    certificate, port = authority.issue("gateway"), free_port()
    options = ["--certfile", certificate.cert, "--keyfile", certificate.key, "--keep-alive", "2"]
    with Process(
        [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", *options, "wsgi:app"],
        log=tmp_path / "workers.log",
        environ=clean_environ(
            NEXUS_RUN_DIR=str(tmp_path / "run"), NEXUS_PORT=str(port), NEXUS_WORKERS="1"
        ),
    ) as workers:
        until(lambda: livez(port, authority), within_s=20)
        yield port
    assert "Traceback" not in workers.output()
    assert "graceful timeout" not in workers.output()


def livez(port, authority):
    context = ssl.create_default_context(cafile=authority.ca)
    client = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    try:
        client.request("GET", "/livez")
        return client.getresponse().status
    finally:
        client.close()


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"], ids=["nothing", "a part"])
def test_a_client_that_does_not_finish_its_handshake_is_disconnected(port, authority, sent):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as silent:
        silent.sendall(sent)
        assert silent.recv(1) == b""
    assert livez(port, authority) == 200


def test_a_failed_handshake_is_no_trace(port, authority):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):  # what it sent was not read
            while client.recv(4096):
                pass
    assert livez(port, authority) == 200


def test_a_client_that_has_closed_before_it_is_accepted_is_no_trace(port, authority):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            reset = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    assert livez(port, authority) == 200


def test_the_claim_names_where_gunicorn_listens(port, tmp_path):
    owner = RunDirectory(tmp_path / "run").owner()
    assert owner.startswith(f"the gateway at https://127.0.0.1:{port} (pid ")
