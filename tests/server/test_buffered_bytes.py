"""What requests and responses in progress hold in memory is counted, bounded and given back."""

import json
import socket
from contextlib import ExitStack, closing

import pytest

from tests.server.asking import CHAT, GOOD, ask
from tests.support.polling import until
from tests.support.processes import Demo, Gateway

pytestmark = pytest.mark.e2e


def large(size: int) -> dict[str, str]:
    return {"x_demo_fault": f"status=200,body=large,size={size}"}


def begin_stream(gateway: Gateway, size: int) -> socket.socket:
    """A stream that stops after its first content; the request has a body of this size."""
    body = json.dumps({**GOOD, "max_tokens": 9, "stream": True}).encode().ljust(size)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"x-demo-fault: stall_after=2\r\n"
    )
    sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    received = b""
    while b"data:" not in received:
        piece = sock.recv(65536)
        assert piece, received
        received += piece
    assert received.startswith(b"HTTP/1.1 200"), received
    return sock


def test_a_stream_does_not_hold_the_body_of_its_request(gateway: Gateway, demo: Demo):
    """Three bodies of 190 kB pass through in turn, where two fit at once, and their streams go
    on."""
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(closing(begin_stream(gateway, 190_000)))
        assert ask(gateway, **large(300_000)).status == 200
    until(lambda: gateway.scrape().total("nexus_pending_requests") == 0)
