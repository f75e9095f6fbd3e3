"""Clients that send slowly, too much, or do not read: each is ended, and none takes the service
from others."""

import http.client
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from nexus.config.records import Server
from nexus.server.body_pace import BodyPace
from tests.server.asking import (
    BODY,
    CHAT,
    JSON,
    Counting,
    Reply,
    ask,
    counted,
    raw,
    refused,
    rejected,
    series,
)
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode()


def head(length: int, *more: str) -> bytes:
    return "".join(
        [HEAD, *(f"{line}\r\n" for line in more), f"Content-Length: {length}\r\n\r\n"]
    ).encode()


def connect(gateway: Gateway, data: bytes = b"", *, buffer: int | None = None) -> socket.socket:
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", gateway.port))
    sock.sendall(data)
    return sock


def reply_on(sock: socket.socket) -> Reply:
    with closing(http.client.HTTPResponse(sock)) as reply:
        reply.begin()
        return Reply(
            reply.status,
            {name.lower(): value for name, value in reply.headers.items()},
            reply.read(),
        )


def status(sock: socket.socket) -> int:
    """The status of the response that comes."""
    return reply_on(sock).status


def trickle(socks: list[socket.socket]) -> Iterator[None]:
    """Send a byte on each again and again, until one of them has a response."""
    for sock in socks:
        sock.setblocking(False)
    while not any(readable(sock) for sock in socks):
        for sock in socks:
            with suppress(BlockingIOError):
                sock.send(b" ")
        yield
        time.sleep(0.1)
    for sock in socks:
        sock.settimeout(20)


def readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


@pytest.mark.e2e
def test_slow_bodies_are_ended_and_take_nothing_from_others(gateway):
    """Ten of each framing, where four requests may be in progress."""
    heads = [head(1000), CHUNKED + b"3e8\r\n"] * 10
    expected = dict.fromkeys(refused(408), 20.0)
    for sample, count in counted(200).items():
        expected[sample] = expected.get(sample, 0.0) + count
    with Counting(gateway, expected), ExitStack() as stack:
        slow = [stack.enter_context(connect(gateway, one)) for one in heads]
        trickling = trickle(slow)
        for _ in range(10):
            next(trickling)
        assert ask(gateway).status == 200
        for _ in trickling:
            pass
        assert [status(sock) for sock in slow] == [408] * 20


@pytest.mark.e2e
def test_the_bytes_of_all_bodies_are_bounded(gateway):
    sent, length = 128 * 1024, 195_000
    expected = {**refused(400), **refused(503, "rate_limited")}
    expected[series("nexus_requests_total", model="unknown", backend="none", status="400")] = 3.0
    expected[series("nexus_errors_total", error_type="invalid_request", model="unknown")] = 3.0
    expected[series("nexus_requests_started_total", endpoint="chat_completions")] = 4.0
    with Counting(gateway, expected), ExitStack() as stack:
        socks = [
            stack.enter_context(connect(gateway, head(length) + b" " * sent)) for _ in range(4)
        ]
        refused_one = until(lambda: next((sock for sock in socks if readable(sock)), None))
        reply = reply_on(refused_one)
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "at_capacity", "1")
        others = [sock for sock in socks if sock is not refused_one]
        for sock in others:
            sock.shutdown(socket.SHUT_WR)
        assert [status(sock) for sock in others] == [400] * 3
    with Counting(gateway, counted(200)):
        assert ask(gateway, body=BODY.ljust(190_000)).status == 200, "what they held was given back"


@pytest.mark.e2e
def test_the_bytes_of_responses_in_progress_are_bounded(gateway, demo):
    """The response that is over the limit is the gateway's own trouble, and no fault of its
    backend."""
    demo.fault("status=200,body=large,size=500000")
    try:
        with Counting(gateway, counted(503, "rate_limited")):
            reply = ask(gateway)
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "at_capacity", "1")
        demo.fault("status=200,body=large,size=300000")
        for _ in range(3):
            with Counting(gateway, counted(200)):
                assert len(ask(gateway).content) > 300_000, "what the others held was given back"
    finally:
        demo.fault("")
    assert gateway.scrape().value("nexus_backend_circuit_state", backend="demo") == 0


@pytest.mark.e2e
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_far_over_the_limit_gets_its_refusal(gateway, chunked):
    """The client sends all of it before it reads, as most do: it must not lose the response."""
    body = b" " * (8 * 1024 * 1024)
    with (
        Counting(gateway, refused(413)),
        closing(http.client.HTTPConnection("127.0.0.1", gateway.port)) as connection,
    ):
        pieces = [body[start : start + 100_000] for start in range(0, len(body), 100_000)]
        connection.request(
            "POST", CHAT, iter(pieces) if chunked else body, JSON, encode_chunked=chunked
        )
        reply = connection.getresponse()
        assert (reply.status, b"body_too_large" in reply.read()) == (413, True)


@pytest.mark.e2e
def test_expect_gets_a_response_before_the_body(gateway):
    with (
        Counting(gateway, counted(200)),
        connect(gateway, head(len(BODY), "Expect: 100-continue")) as sock,
    ):
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(BODY)
        assert status(sock) == 200


@pytest.mark.e2e
def test_expect_with_a_body_over_the_limit_is_refused_at_once(gateway):
    with Counting(gateway, refused(413)):
        reply = raw(gateway, head(300_000, "Expect: 100-Continue"))
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nConnection: close\r\n" in reply


@pytest.mark.e2e
def test_a_head_that_is_too_large(gateway):
    with Counting(gateway, rejected("head_too_large")):
        reply = raw(
            gateway, HEAD.encode() + b"X-A: " + b"a" * 10_000 + (b"\r\nX-B: " + b"b" * 10_000) * 10
        )
    assert reply.startswith(b"HTTP/1.1 431 ")
    assert b"head_too_large" in reply


@pytest.mark.e2e
def test_clients_that_do_not_read_are_ended(gateway):
    """One for each kind of response that is not relayed."""
    paths = ["/metrics", "/assets/vendor/uPlot.iife.min.js", "/v1/models"]
    with ExitStack() as stack:
        going = {stack.enter_context(connect(gateway, buffer=2048)): path for path in paths}
        for sock in going:
            sock.setblocking(False)

        def all_ended() -> bool:
            for sock, path in list(going.items()):
                try:
                    sock.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 100)
                except BlockingIOError:
                    pass
                except ConnectionError:
                    del going[sock]
            return not going

        until(all_ended, within_s=120, every_s=0.1)


@pytest.mark.e2e
def test_a_client_that_does_not_read_holds_up_no_stop(tmp_path):
    with Demo(tmp_path, pace=0, models=[f"{'m' * 200}-{number}" for number in range(100)]) as demo:
        environ = {"NEXUS_GRACEFUL_TIMEOUT": "120"}
        with (
            Gateway(tmp_path, backend_toml(demo), workers=1, environ=environ) as gateway,
            connect(gateway, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 400, buffer=2048),
            connect(gateway, b"GET /v1/live HTTP/1.1\r\nHost: x\r\n\r\n", buffer=2048) as viewer,
        ):
            assert viewer.recv(9) == b"HTTP/1.1 "
            until(lambda: blocked(gateway) == 2, within_s=60)
            gateway.stop(within_s=100)  # less than its grace


def blocked(gateway: Gateway) -> int:
    """Connections of the gateway that have bytes which their clients do not take."""
    with open("/proc/net/tcp") as table:  # noqa: PTH123 - a file of the kernel, read line by line
        lines = [line.split() for line in table.readlines()[1:]]
    port = f":{gateway.port:04X}"
    return sum(
        line[1].endswith(port) and int(line[4].partition(":")[0], 16) > 100_000 for line in lines
    )


@pytest.mark.parametrize(
    ("at", "received", "left"),
    [
        (0.0, 0, 5.0),
        (4.0, 0, 1.0),
        (5.0, 0, 0.0),
        (5.0, 240, 1.0),
        (30.0, 240 * 30, 5.0),
        (1.0, 10**6, 60.0),
        (290.0, 10**9, 10.0),
        (301.0, 10**9, -1.0),
    ],
)
def test_pace(at, received, left):
    assert BodyPace(100.0, Server()).remaining_s(100.0 + at, received) == pytest.approx(left)


def test_pace_without_a_least_rate():
    assert BodyPace(0.0, Server(min_body_bytes_per_second=0)).remaining_s(200.0, 1) == 60.0
