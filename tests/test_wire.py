"""What connections between gateways and backends may bring: loops, bytes that nobody requested,
headers of one hop."""

import http.client
import json
import socket

import pytest

from nexus.config import Config
from nexus.config.routing_records import CircuitBreaker
from tests.support.load import chat
from tests.support.polling import until
from tests.support.processes import Workers, backend
from tests.support.replay import Replay, whole

pytestmark = pytest.mark.e2e

FLASK = pytest.mark.parametrize("flask", [False, True], ids=["fast path", "flask"])
CONFIG = Config(circuit_breaker=CircuitBreaker(enabled=False))


@pytest.fixture(scope="module")
def replay():
    with Replay() as replay:
        yield replay


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, replay: Replay):
    """Two gateways, each with a run directory of its own."""
    directories = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    with (
        Workers(directories[0], CONFIG, [backend("up", replay.url, "m")]) as first,
        Workers(directories[1], CONFIG, [backend("up", replay.url, "m")]) as second,
    ):
        yield first, second


def ask(
    gateway: Workers, *, flask: bool = False, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    body = json.dumps(chat("x", "m").body).encode()
    connection.request(
        "POST", "/v1/chat/completions", iter([body]) if flask else body,
        {"content-type": "application/json", **headers}, encode_chunked=flask,
    )  # fmt: skip
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, content


@FLASK
def test_a_gateway_that_is_its_own_backend(pair, flask):
    """The request comes back once, and is told what is wrong."""
    gateway, _ = pair
    gateway.publish(CONFIG, [backend("itself", gateway.base, "m")])
    before = gateway.settled()
    status, headers, content = ask(gateway, flask=flask)
    error = json.loads(content)["error"]
    assert (status, error["code"], headers["x-should-retry"]) == (508, "loop_detected", "false")
    assert "leads back to the gateway" in error["message"]
    after = gateway.settled()
    moved = {
        labels: value
        - before.series("nexus_requests_total", "model", "backend", "status").get(labels, 0)
        for labels, value in after.series(
            "nexus_requests_total", "model", "backend", "status"
        ).items()
        if value
        != before.series("nexus_requests_total", "model", "backend", "status").get(labels, 0)
    }
    assert moved == {("m", "itself", "508"): 1, ("unknown", "none", "508"): 1}
    errors = [
        scrape.total("nexus_errors_total", error_type="loop_detected") for scrape in (before, after)
    ]
    assert errors[1] - errors[0] == 2


def test_two_gateways_that_lead_to_each_other(pair):
    first, second = pair
    first.publish(CONFIG, [backend("second", second.base, "m")])
    second.publish(CONFIG, [backend("first", first.base, "m")])
    before = [gateway.settled().total("nexus_requests_total") for gateway in pair]
    status, _, content = ask(first)
    assert (status, json.loads(content)["error"]["code"]) == (508, "loop_detected")
    after = [gateway.settled().total("nexus_requests_total") for gateway in pair]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2, 1]


def test_a_chain_of_gateways_is_no_loop(pair, replay):
    first, second = pair
    replay.scripts["m"] = whole(200, {"choices": []})
    first.publish(CONFIG, [backend("second", second.base, "m")])
    second.publish(CONFIG, [backend("up", replay.url, "m")])
    assert ask(first, via="1.1 balancer")[0] == 200


def test_another_backend_serves_what_one_leads_back(pair, replay):
    first, _ = pair
    replay.scripts["m"] = whole(200, {"choices": []})
    first.publish(
        CONFIG,
        [
            backend("itself", first.base, "m", priority=1),
            backend("up", replay.url, "m", priority=90),
        ],
    )
    assert ask(first)[0] == 200


class Stray(Replay):
    """Keeps its connections, and sends a second response to each request when it is told to."""

    def __init__(self) -> None:
        self.connections: list[socket.socket] = []
        super().__init__()

    def _serve(self, sock: socket.socket) -> None:
        self.connections.append(sock)
        try:
            with sock.makefile("rb") as lines:
                while lines.readline():
                    length = 0
                    while (line := lines.readline()) not in (b"\r\n", b""):
                        name, _, value = line.partition(b":")
                        length = int(value) if name.lower() == b"content-length" else length
                    lines.read(length)
                    self.respond(sock, b'{"choices":[]}')
        except OSError:
            pass

    @staticmethod
    def respond(sock: socket.socket, content: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        sock.sendall(head % len(content) + content)


def test_a_response_that_nobody_requested_is_nobodys(pair):
    """Its connection is closed, and for some minutes none is kept to that backend; this is
    logged and counted."""
    gateway, _ = pair
    unsolicited = "nexus_backend_unsolicited_responses_total"
    with Stray() as stray:
        gateway.publish(CONFIG, [backend("stray", stray.url, "m", keepalive_seconds=60)])
        assert [ask(gateway)[2] for _ in range(3)] == 3 * [b'{"choices":[]}']
        assert len(stray.connections) == 1, "it is kept"
        stray.respond(stray.connections[0], b'{"choices":["another client\'s"]}')
        assert [ask(gateway)[2] for _ in range(3)] == 3 * [b'{"choices":[]}']
        assert len(stray.connections) == 4, "none is kept"
        assert until(lambda: gateway.scrape().total(unsolicited)) == 1
        assert gateway.scrape().value(unsolicited, backend="stray") == 1
        [line] = gateway.lines("backend sent bytes without a request")
        assert (line["level"], line["backend"]) == ("warn", "stray")
        for sock in stray.connections:
            sock.close()


@FLASK
def test_headers_of_one_hop_are_not_the_clients(pair, replay, flask):
    """A backend names them in its Connection header."""
    gateway, _ = pair
    replay.scripts["m"] = lambda _, sock: sock.sendall(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close, X-Hop\r\n"
        b"x-hop: secret\r\nx-end: 1\r\n"
        b'content-length: 14\r\n\r\n{"choices":[]}'
    )
    gateway.publish(CONFIG, [backend("up", replay.url, "m")])
    status, headers, content = ask(gateway, flask=flask)
    assert (status, content, headers["x-end"]) == (200, b'{"choices":[]}', "1")
    assert "x-hop" not in headers
