"""A client that goes away: the backend's connection is closed at once, the request is counted as 499, nothing leaks."""

import json
import socket

import pytest

from tests.support.load import chat
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def slow(module_dir):
    with Demo(module_dir, name="slow", pace=20, length=10_000) as demo:
        yield demo


@pytest.fixture(scope="module")
def gateway(module_dir, slow):
    with Gateway(module_dir, backend_toml(slow)) as gateway:
        yield gateway


def send(gateway: Gateway, *, stream: bool, headers: str = "") -> socket.socket:
    body = json.dumps(chat("x", "demo-small", stream=stream).body).encode()
    sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
    sock.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        + headers.encode()
        + b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    return sock


def gone(gateway: Gateway) -> float:
    return gateway.scrape().value("nexus_requests_total", model="demo_small", backend="slow", status="499")


@pytest.mark.parametrize(
    ("stream", "headers", "read_first"),
    [
        (True, "", True),  # in the middle of a stream
        (True, "x-demo-fault: hang\r\n", False),  # before the first byte of a stream
        (False, "x-demo-fault: delay=60\r\n", False),  # while it waits for a whole answer
    ],
)
def test_client_goes_away(gateway, slow, stream, headers, read_first):
    before, lines = gone(gateway), len(gateway.lines("request"))
    sock = send(gateway, stream=stream, headers=headers)
    if read_first:
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
    until(lambda: slow.tally()["open"] == 1)
    assert gateway.scrape().value("nexus_pending_requests", backend="slow") == 1
    sock.close()
    until(lambda: slow.tally()["open"] == 0, within_s=2)
    until(lambda: gone(gateway) == before + 1)
    scrape = gateway.scrape()
    assert scrape.value("nexus_pending_requests", backend="slow") == 0
    assert scrape.total("nexus_errors_total", error_type="client_disconnect") == before + 1
    assert [line["status"] for line in gateway.lines("request")[lines:]] == [499]


def test_bytes_sent_ahead_are_no_sign_of_leaving(gateway, slow):
    """A pipelined request waits for its turn; the first is answered in full."""
    sock = send(gateway, stream=False, headers="x-demo-fault: delay=0.3\r\n")
    sock.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = b""
    while data := sock.recv(65536):
        answer += data
    sock.close()
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.endswith(b"ok\n")
