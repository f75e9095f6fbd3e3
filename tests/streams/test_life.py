"""Pings, comments and progress while a backend reads a long prompt: what the client sees, and
what the limits do."""

import json
import socket
import threading
import time

import pytest

from nexus.config import Config
from nexus.config.records import Server
from nexus.config.routing_records import CircuitBreaker, Routing
from tests.streams.exact import CONFIG, Client, flat
from tests.support.processes import backend
from tests.support.replay import HEAD, Replay

pytestmark = pytest.mark.e2e

FLASK = pytest.mark.parametrize("flask", [False, True], ids=["fast path", "flask"])
CONTENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"
ROLE = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null},'
    b'"finish_reason":null}]}\n\n'
)
PROGRESS = ROLE.replace(
    b'"finish_reason":null}]', b'"finish_reason":null}],"prompt_progress":{"total":9,"processed":4}'
)
PINGS = [
    b":\n\n",
    b": OPENROUTER PROCESSING\n\n",
    b'event: ping\ndata: {"type": "ping"}\n\n',
    b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
]


class Prefill:
    """A backend that sends a ping now and then until it is told to go on, then what it is told."""

    def __init__(self, ping: bytes, then: bytes = CONTENT + DONE, *, every_s: float = 0.2) -> None:
        self.go_on = threading.Event()
        self.asked = 0
        self._ping, self._then, self._every_s = ping, then, every_s

    def __call__(self, _: object, sock: socket.socket) -> None:
        self.asked += 1
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n")
        pause_s = 0.0
        while not self.go_on.wait(pause_s):
            sock.sendall(chunk(self._ping))
            pause_s = self._every_s
        if self._then:
            sock.sendall(chunk(self._then) + b"0\r\n\r\n")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def serve(gateway, replay: Replay, script, config: Config = CONFIG, **limits: float) -> None:
    replay.scripts["prefill"] = script
    gateway.publish(config, [backend("up", replay.url, "prefill", **limits)])


@FLASK
@pytest.mark.parametrize("ping", PINGS)
def test_pings_reach_the_client_as_they_come(gateway, replay, ping, flask):
    """The backend goes on only when the client has seen three of them."""
    prefill = Prefill(ping)
    serve(gateway, replay, prefill)
    before = gateway.settled()
    with Client(gateway.port, "prefill", flask=flask) as client:
        client.read_until(3 * ping)
        prefill.go_on.set()
        content = client.read()
    assert content.endswith(CONTENT + DONE)
    assert set(content.removesuffix(CONTENT + DONE).split(b"\n\n")[:-1]) == {
        ping.removesuffix(b"\n\n")
    }
    changes = flat(before, gateway.settled())
    data_pings = content.count(ping) if b"choices" in ping else 0
    assert changes == {
        "requests_total{up,prefill,200}": 1,
        "usage_total{counted}": 1,
        "stream_ends_total{up,complete}": 1,
        "stream_events_total{up,prefill}": 1 + data_pings,
        "tokens_total_sum{up,prefill,completion}": 1,
        "time_to_first_token_seconds_count{up,prefill}": 1,
        "stream_longest_gap_seconds_count{up,prefill}": 1,
    }


@FLASK
def test_pings_keep_the_limits_from_firing(gateway, replay, flask):
    """A prompt that takes far longer than the limits is read once, as long as the backend shows
    that it is alive."""
    prefill = Prefill(b":\n\n", every_s=0.1)
    config = Config(server=Server(request_timeout_seconds=1.2), routing=Routing(max_retries=3))
    serve(
        gateway, replay, prefill, config, first_byte_timeout_seconds=1.5, idle_timeout_seconds=0.4
    )
    with Client(gateway.port, "prefill", flask=flask) as client:
        client.read_until(20 * b":\n\n")
        prefill.go_on.set()
        assert client.read().endswith(CONTENT + DONE)
    assert prefill.asked == 1


@FLASK
def test_silence_after_pings_is_reported_in_the_stream(gateway, replay, flask):
    """It is bounded by the limit for the first byte or by that for silences, whichever is
    longer."""

    def falls_silent(_: object, sock: socket.socket) -> None:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(15):
            sock.sendall(chunk(b":\n\n"))
            if over.wait(0.1):
                return
        over.wait(20)

    over = threading.Event()
    serve(gateway, replay, falls_silent, first_byte_timeout_seconds=1.5, idle_timeout_seconds=0.3)
    before = gateway.settled()
    with Client(gateway.port, "prefill", flask=flask) as client:
        *pings, event = client.read().removesuffix(b"\n\n").split(b"\n\n")
    over.set()
    assert pings == 15 * [b":"]
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "stream_idle"
    assert flat(before, gateway.settled()) == {
        "requests_total{up,prefill,504}": 1,
        "usage_total{none}": 1,
        "stream_ends_total{up,idle_timeout}": 1,
        "stream_longest_gap_seconds_count{up,prefill}": 1,
    }


def test_after_the_first_token_silences_have_their_own_limit(gateway, replay):
    """However long the first byte may take: the watch on the stream follows the shorter limit at
    once."""
    over = threading.Event()

    def falls_silent(_: object, sock: socket.socket) -> None:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(12):
            sock.sendall(chunk(b":\n\n"))
            over.wait(0.1)
        sock.sendall(chunk(CONTENT))
        over.wait(10)

    serve(gateway, replay, falls_silent, first_byte_timeout_seconds=60, idle_timeout_seconds=0.5)
    with Client(gateway.port, "prefill") as client:
        assert b"stream_idle" in client.read(), "before the backend's own patience was over"
    over.set()


@FLASK
def test_progress_events_go_on_at_once(gateway, replay, flask):
    """Who asks for them wants to see them; they are no token."""
    prefill = Prefill(PROGRESS, every_s=10)
    serve(gateway, replay, prefill)
    before = gateway.settled()
    with Client(gateway.port, "prefill", flask=flask, return_progress=True) as client:
        client.read_until(PROGRESS)
        prefill.go_on.set()
        assert client.read() == PROGRESS + CONTENT + DONE
    changes = flat(before, gateway.settled())
    assert changes["stream_events_total{up,prefill}"] == 2
    assert changes["tokens_total_sum{up,prefill,completion}"] == 1


@FLASK
def test_a_failure_in_the_first_moments_is_another_backends_chance(gateway, replay, flask):
    """Pings that come at once are held back so long."""
    asked = []

    def pings_and_fails(_: object, sock: socket.socket) -> None:
        asked.append(1)
        error = b'data: {"error":{"message":"no","code":502}}\n\n'
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for data in (b": OPENROUTER PROCESSING\n\n", ROLE, error):
            sock.sendall(chunk(data))
            time.sleep(0.05)

    with Replay() as second:
        second.scripts["prefill"] = ready = Prefill(b":\n\n")
        ready.go_on.set()
        replay.scripts["prefill"] = pings_and_fails
        gateway.publish(
            Config(routing=Routing(strategy="priority_only")),
            [
                backend("up", replay.url, "prefill", priority=1),
                backend("two", second.url, "prefill", priority=50),
            ],
        )
        with Client(gateway.port, "prefill", flask=flask) as client:
            assert client.read() == CONTENT + DONE
            assert client.response.getheader("x-nexus-backend") == "two"
    assert asked == [1]


@FLASK
@pytest.mark.parametrize(
    ("error", "end", "status"),
    [
        (
            b'data: {"error":{"message":"too long","code":400,"type":"invalid_request_error"}}\n\n',
            "in_band_error",
            502,
        ),
        (b'data: {"error":{"message":"broken","code":500}}\n\n', "in_band_error", 502),
        (b"", "upstream_reset", 502),
    ],
)
def test_a_failure_after_pings_is_reported_in_the_stream(
    gateway, replay, error, end, status, flask
):
    """The client's own mistake speaks against no backend, though its response has started."""
    prefill = Prefill(b":\n\n", error)
    config = Config(circuit_breaker=CircuitBreaker(failures=1), routing=Routing(max_retries=3))
    serve(gateway, replay, prefill, config)
    before = gateway.settled()
    with Client(gateway.port, "prefill", flask=flask) as client:
        client.read_until(b":\n\n")
        prefill.go_on.set()
        content = client.read()
    after = gateway.settled()
    assert prefill.asked == 1
    assert json.loads(content.strip().rpartition(b"\n\n")[2].removeprefix(b"data: "))["error"]
    assert content.count(b"data:") == 1, "it is told once"
    changes = flat(before, after)
    assert changes[f"requests_total{{up,prefill,{status}}}"] == 1
    assert changes[f"stream_ends_total{{up,{end}}}"] == 1
    kind = "invalid_request" if b"400" in error else "stream_interrupted"
    errors = {"error_type": kind, "model": "prefill"}
    assert (
        after.total("nexus_errors_total", **errors) - before.total("nexus_errors_total", **errors)
        == 1
    )


def test_with_comments_of_our_own_pings_only_count_as_life(gateway, replay):
    """The client sees ours, and until the first content another backend can still be tried."""
    prefill = Prefill(
        b": ping\n\n", b'data: {"error":{"message":"no","code":500}}\n\n', every_s=0.1
    )
    config = Config(
        server=Server(stream_keepalive_seconds=0.3),
        routing=Routing(strategy="priority_only"),
    )
    with Replay() as second:
        second.scripts["prefill"] = ready = Prefill(b":\n\n")
        ready.go_on.set()
        replay.scripts["prefill"] = prefill
        gateway.publish(
            config,
            [
                backend("up", replay.url, "prefill", priority=1, first_byte_timeout_seconds=0.7),
                backend("two", second.url, "prefill", priority=50),
            ],
        )
        with Client(gateway.port, "prefill") as client:
            client.read_until(5 * b": waiting\n\n")
            prefill.go_on.set()
            content = client.read()
    assert content.endswith(b": waiting\n\n" + CONTENT + DONE)
    assert b": ping" not in content
