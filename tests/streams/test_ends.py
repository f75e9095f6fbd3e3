"""How streams end that do not end by themselves: cut, silent, refused, left by their clients,
stopped."""

import contextlib
import json
import os
import signal
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from nexus.config import Config
from nexus.config.routing_records import CircuitBreaker
from tests.streams.exact import CONFIG, Client, flat, stream
from tests.support.load import chat, run
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend, backend_toml
from tests.support.replay import HEAD, Replay, in_packets

pytestmark = pytest.mark.e2e


def test_a_refusal_within_a_stream_is_the_clients(gateway, replay):
    """It is tried nowhere else and speaks against no backend, however often; as a status of 400
    would."""
    error = {
        "message": "This model's maximum context length is 4096 tokens",
        "type": "BadRequestError",
        "code": 400,
    }
    event = b"data: " + json.dumps({"error": error}).encode() + b"\n\ndata: [DONE]\n\n"
    replay.scripts["refuses"] = in_packets(event, 10_000)
    replay.asked.clear()
    names = ["a", "b"]
    gateway.publish(
        Config(circuit_breaker=CircuitBreaker(failures=2)),
        [backend(n, replay.url, "refuses") for n in names],
    )
    for _ in range(6):
        status, content = stream(gateway, "refuses")
        assert (status, json.loads(content)) == (400, {"error": error}), "the backend's own words"
    assert len(replay.asked) == 6
    circuits = {entry["name"]: entry["circuit"] for entry in gateway.stats()["backends"]}
    assert [circuits[name] for name in names] == ["closed", "closed"]


def test_the_limit_for_the_first_content_is_that_for_the_first_byte(gateway, replay):
    """Not that for silences within the stream; and neither a head nor a role ends it."""
    role, word = (
        b'data: {"choices":[{"delta":%b}]}\n\n' % delta
        for delta in (b'{"role":"assistant"}', b'{"content":"x"}')
    )

    def prefill(_, sock: socket.socket) -> None:
        sock.sendall(
            HEAD
            + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n%x\r\n%b\r\n"
            % (len(role), role)
        )
        time.sleep(0.8)
        sock.sendall(b"%x\r\n%b\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n" % (len(word), word))

    replay.scripts["prefill"] = prefill
    patient = backend(
        "up", replay.url, "prefill", first_byte_timeout_seconds=5, idle_timeout_seconds=0.3
    )
    gateway.publish(CONFIG, [patient])
    assert stream(gateway, "prefill") == (200, role + word + b"data: [DONE]\n\n")
    gateway.publish(
        CONFIG,
        [
            backend(
                "up", replay.url, "prefill", first_byte_timeout_seconds=0.4, idle_timeout_seconds=5
            )
        ],
    )
    status, content = stream(gateway, "prefill")
    assert (status, json.loads(content)["error"]["code"]) == (504, "first_byte_timeout")


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize(
    ("end", "code"), [(b"", "stream_reset"), (b"0\r\n\r\n", "stream_truncated")]
)
@pytest.mark.parametrize("length", [40, 100_000])
def test_a_stream_that_breaks_off_within_an_event(gateway, replay, asks, end, code, length):
    """The error is an event of its own, whatever of the broken one has gone on."""
    event = b'data: {"choices":[{"delta":{"content":"' + b"x" * 200_000 + b'"}}]}\n\n'
    said = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'

    def send(_, sock: socket.socket) -> None:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n")
        for part in (said, event[:length]):
            sock.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            time.sleep(0.05)
        sock.sendall(end)

    replay.scripts["broken"] = send
    gateway.publish(CONFIG, [backend("up", replay.url, "broken")])
    status, content = stream(
        gateway, "broken", **({"stream_options": {"include_usage": True}} if asks else {})
    )
    assert status == 200
    first, *broken, last = content.removesuffix(b"\n\n").split(b"\n\n")
    assert first + b"\n\n" == said
    assert broken == ([] if length < 1000 else [event[:length]])
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code


def test_the_silence_that_ends_a_stream_is_its_longest(gateway, replay):
    said = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    asked_on = threading.Event()

    def send(_, sock: socket.socket) -> None:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(said), said))
        asked_on.wait(10)

    replay.scripts["silent"] = send
    gateway.publish(CONFIG, [backend("up", replay.url, "silent", idle_timeout_seconds=0.4)])
    gap = "nexus_stream_longest_gap_seconds"
    before, started = gateway.settled(), time.monotonic()
    assert b"stream_idle" in stream(gateway, "silent")[1]
    took_s = time.monotonic() - started
    asked_on.set()
    changes = {
        key[0]: change
        for key, change in moved(before, gateway.settled(), (f"{gap}_sum", f"{gap}_count")).items()
    }
    assert changes[f"{gap}_count"] == 1
    assert 0.35 < changes[f"{gap}_sum"] < took_s


def test_a_client_that_closes_at_done_has_all_it_requested(gateway, replay):
    """Many clients close at `[DONE]`, before the body's last chunk: that is no disconnect."""
    asked_on = threading.Event()

    def send(_, sock: socket.socket) -> None:
        event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\ndata: [DONE]\n\n'
        sock.sendall(
            HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n" % (len(event), event)
        )
        asked_on.wait(10)

    replay.scripts["at-done"] = send
    gateway.publish(CONFIG, [backend("up", replay.url, "at-done")])
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock:
        body = json.dumps(chat("x", "at-done", stream=True).body).encode()
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        received = b""
        while b"[DONE]" not in received:
            received += sock.recv(65536)
    after = until(
        lambda: (s := gateway.settled()).total("nexus_requests_total", model="at_done") and s
    )
    asked_on.set()
    assert after.series("nexus_requests_total", "model", "status")["at_done", "200"] == 1
    assert after.total("nexus_requests_total", model="at_done") == 1


@pytest.mark.parametrize("flask", [False, True], ids=["fast path", "Flask"])
@pytest.mark.parametrize("more", [b"", b"data: [DONE]\n\n"], ids=["alone", "with [DONE]"])
def test_a_client_that_closes_at_an_error_is_not_its_reason(gateway, replay, flask, more):
    said = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    error = b'data: {"error":{"message":"engine died","type":"InternalServerError","code":500}}\n\n'
    started, counted = threading.Event(), threading.Event()

    def send(_, sock: socket.socket) -> None:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for part, event in ((said, started), (error + more, counted)):
            sock.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            event.wait(10)

    replay.scripts["broken"] = send
    gateway.publish(CONFIG, [backend("up", replay.url, "broken")])
    before = gateway.settled()
    with Client(gateway.port, "broken", flask=flask) as client:
        client.read_until(said)
        started.set()
        client.read_until(b"engine died")
    ended = ["nexus_stream_ends_total", "nexus_errors_total", "nexus_upstream_attempts_total"]
    changes = until(lambda: moved(before, gateway.settled(), ended))
    counted.set()
    assert {name: sorted(dict(labels).values()) for name, labels in changes} == {
        "nexus_stream_ends_total": ["in_band_error", "up"],
        "nexus_errors_total": ["broken", "stream_interrupted"],
        "nexus_upstream_attempts_total": ["stream_interrupted", "up"],
    }
    assert set(changes.values()) == {1}


def test_tokens_of_a_client_that_leaves_are_counted(gateway, replay):
    gateway.publish(Config(), [backend("up", replay.url, "slow")])
    going = threading.Event()

    def send(_, sock: socket.socket) -> None:
        event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
        sock.sendall(
            HEAD
            + b"transfer-encoding: chunked\r\n\r\n"
            + b"%x\r\n%s\r\n" % (3 * len(event), 3 * event)
        )
        going.wait(10)

    replay.scripts["slow"] = send
    before = gateway.settled()
    sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
    body = json.dumps(chat("x", "slow", stream=True).body).encode()
    sock.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    read = b""
    while read.count(b"data: {") < 3:
        read += sock.recv(65536)
    assert gateway.scrape().value("nexus_streams_active") == 1
    assert (
        gateway.scrape().value(
            "nexus_time_to_first_token_seconds_count", model="slow", backend="up"
        )
        == 1
    ), "already"
    sock.close()
    after = until(
        lambda: (
            (s := gateway.settled()).total("nexus_stream_ends_total", reason="client_disconnect")
            and s
        )
    )
    going.set()
    assert flat(before, after) == {
        "requests_total{up,slow,499}": 1,
        "usage_total{counted}": 1,
        "stream_ends_total{up,client_disconnect}": 1,
        "stream_events_total{up,slow}": 3,
        "tokens_total_sum{up,slow,completion}": 3,
        "time_to_first_token_seconds_count{up,slow}": 1,
        "time_per_output_token_seconds_count{up,events,slow}": 1,
        "stream_longest_gap_seconds_count{up,slow}": 1,
    }
    assert after.value("nexus_streams_active") == 0


def test_a_slow_client_slows_its_backend(gateway, replay):
    """Nothing piles up in the gateway: what the backend could send is what fits into the sockets
    on the way."""
    gateway.publish(Config(), [backend("up", replay.url, "large")])
    sent, event = [0], b'data: {"choices":[{"delta":{"content":"' + b"x" * 60_000 + b'"}}]}\n\n'
    total = 64 * 1024 * 1024

    def send(_, sock: socket.socket) -> None:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n")
        while sent[0] < total:
            sock.sendall(b"%x\r\n%s\r\n" % (len(event), event))
            sent[0] += len(event)
        sock.sendall(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    replay.scripts["large"] = send
    memory = lambda: max(  # noqa: E731
        value for (name, labels), value in gateway.scrape().samples.items()
        if name == "nexus_process_resident_memory_bytes" and ("role", "worker") in labels
    )  # fmt: skip
    before = memory()
    sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    body = json.dumps(chat("x", "large", stream=True).body).encode()
    sock.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    assert sock.recv(1000)
    last = -1
    while last != sent[0]:
        last = sent[0]
        time.sleep(0.3)
    assert sent[0] < 24 * 1024 * 1024, "the sockets' buffers, and no more"
    assert memory() - before < 8 * 1024 * 1024
    received = 0
    while data := sock.recv(1 << 20):
        received += len(data)
        if data.endswith(b"0\r\n\r\n"):
            break
    sock.close()
    assert received > total
    assert (
        gateway.settled().value("nexus_requests_total", model="large", backend="up", status="200")
        == 1
    )


def test_at_a_stop_streams_get_an_error_event(tmp_path: Path):
    """They get their grace; what goes on for longer ends with an error event, what has no response
    yet with a 503."""
    with Demo(tmp_path, name="d", models=["m"], pace=20, length=100_000) as demo:
        gateway = Gateway(
            tmp_path, backend_toml(demo), workers=2, environ={"NEXUS_GRACEFUL_TIMEOUT": "3"}
        )
        results: list[tuple[str, int, bytes]] = []
        asks = [
            *[chat("short", "m", stream=True, max_tokens=30)] * 3,
            *[chat("long", "m", stream=True)] * 3,
        ]
        load = threading.Thread(
            target=run,
            args=(gateway.port, asks),
            kwargs={
                "concurrency": 6,
                "seen": lambda ask, status, content: results.append((ask.kind, status, content)),
            },
        )
        load.start()
        until(lambda: demo.tally()["open"] == 6)
        demo.fault("hang")
        waiting = threading.Thread(
            target=run,
            args=(gateway.port, [chat("waiting", "m")]),
            kwargs={
                "concurrency": 1,
                "seen": lambda ask, status, content: results.append((ask.kind, status, content)),
            },
        )
        waiting.start()
        until(lambda: demo.tally()["open"] == 7)
        until(lambda: gateway.scrape().value("nexus_streams_active") == 6)
        gateway.send(signal.SIGTERM)
        load.join(20)
        waiting.join(20)
        assert gateway.child.wait(20) == 0
        assert sorted((kind, status) for kind, status, _ in results) == [
            *[("long", 200)] * 3, *[("short", 200)] * 3, ("waiting", 503),
        ]  # fmt: skip
        for kind, _, content in results:
            if kind == "short":
                assert content.endswith(b"data: [DONE]\n\n")
            elif kind == "long":
                last = content.strip().split(b"\n\n")[-1].removeprefix(b"data: ")
                assert json.loads(last)["error"]["code"] == "shutdown"
        lines = [
            (line["status"], line.get("fault"), line.get("end"))
            for line in gateway.lines("request")
        ]
        assert sorted(lines, key=str) == [
            *[(200, None, "complete")] * 3,
            *[(502, "shutdown", "shutdown")] * 3,
            (503, "stopping", None),
        ]


FLASK = pytest.mark.parametrize("flask", [False, True], ids=["fast path", "flask"])
SAID = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
REASON = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Ending:
    """A backend that sends these parts, and then does with its connection what it is told."""

    def __init__(self, end: str, *parts: bytes) -> None:
        self.seen = threading.Event()
        self._end, self._parts = end, parts

    def __call__(self, _: object, sock: socket.socket) -> None:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for part in (*self._parts, *([SAID] if self._end == "sends on" else [])):
            sock.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            time.sleep(0.03)
        if self._end == "resets":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(sock.detach())
        elif self._end == "closes":
            sock.shutdown(socket.SHUT_RDWR)
        else:
            self.seen.wait(15)


@FLASK
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("end", ["hangs", "resets", "closes", "sends on"])
def test_done_is_the_end(gateway, replay, end, together, flask):
    """Whatever the connection does then: the client gets its end at once, and the stream is
    complete."""
    replay.scripts["done"] = ending = Ending(
        end, *([SAID + DONE] if together else [SAID, SAID, DONE])
    )
    gateway.publish(CONFIG, [backend("up", replay.url, "done", idle_timeout_seconds=60)])
    before = gateway.settled()
    for _ in range(2):
        with Client(gateway.port, "done", flask=flask) as client:
            assert client.read() == (SAID + DONE if together else SAID + SAID + DONE)
    ending.seen.set()
    changes = flat(before, gateway.settled())
    assert changes["stream_ends_total{up,complete}"] == 2
    assert {
        name: change for name, change in changes.items() if name.startswith("requests_total")
    } == {"requests_total{up,done,200}": 2}


def test_the_connection_of_a_stream_is_kept_if_its_response_ends(gateway):
    """The last chunk nearly always comes in a packet of its own, after `[DONE]`."""
    served: list[int] = []

    class Kept(Replay):
        def _serve(self, sock: socket.socket) -> None:
            with contextlib.suppress(OSError), sock, sock.makefile("rb") as lines:
                served.append(0)
                while lines.readline():
                    length = 0
                    while (line := lines.readline()) not in (b"\r\n", b""):
                        name, _, value = line.partition(b":")
                        length = int(value) if name.lower() == b"content-length" else length
                    lines.read(length)
                    sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
                    for part in (SAID, DONE, b""):
                        time.sleep(0.02)
                        sock.sendall(b"%x\r\n%b\r\n" % (len(part), part))
                    served[-1] += 1

    with Kept() as kept:
        gateway.publish(CONFIG, [backend("up", kept.url, "done", keepalive_seconds=60)])
        for count in range(1, 5):
            assert stream(gateway, "done") == (200, SAID + DONE)
            until(lambda count=count: served == [count])


@FLASK
@pytest.mark.parametrize(
    "rest",
    [
        DONE + b'data: {"error":{"message":"late"}}\n\n',
        DONE + SAID,
        (DONE, b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
        (DONE, b"no chunk\r\n"),
    ],
    ids=["error", "event", "response", "garbage"],
)
def test_what_comes_with_done_is_no_part_of_the_stream(gateway, replay, rest, flask):
    events, after = rest if isinstance(rest, tuple) else (rest, b"")

    def script(_: object, sock: socket.socket) -> None:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(SAID), SAID))
        time.sleep(0.1)
        sock.sendall(b"%x\r\n%b\r\n%b" % (len(events), events, after))

    replay.scripts["done"] = script
    gateway.publish(CONFIG, [backend("up", replay.url, "done")])
    before = gateway.settled()
    with Client(gateway.port, "done", flask=flask) as client:
        assert client.read() == SAID + DONE
    changes = flat(before, gateway.settled())
    assert changes["requests_total{up,done,200}"] == 1
    assert changes["stream_ends_total{up,complete}"] == 1


def test_an_error_that_is_no_event_is_an_error(gateway, replay):
    """As the whole body of what claims to be a stream. It is the client's mistake here."""
    error = b'{"error": {"message": "too hot", "type": "BadRequestError", "code": 400}}'
    replay.scripts["refuses"] = in_packets(error, 10_000)
    replay.asked.clear()
    names = ["a", "b"]
    gateway.publish(CONFIG, [backend(name, replay.url, "refuses") for name in names])
    assert stream(gateway, "refuses") == (400, error)
    assert len(replay.asked) == 1, "no other backend was tried"


@FLASK
@pytest.mark.parametrize("end", ["resets", "closes", "hangs"])
def test_a_stream_that_has_finished_is_not_broken(gateway, replay, end, flask):
    """A backend without `[DONE]` that gave its reason for finishing has said all."""
    replay.scripts["done"] = ending = Ending(end, SAID, REASON)
    gateway.publish(CONFIG, [backend("up", replay.url, "done", idle_timeout_seconds=1)])
    before = gateway.settled()
    with Client(gateway.port, "done", flask=flask) as client:
        assert client.read() == SAID + REASON
    ending.seen.set()
    changes = flat(before, gateway.settled())
    assert changes["requests_total{up,done,200}"] == 1
    assert changes["stream_ends_total{up,complete}"] == 1


@FLASK
@pytest.mark.parametrize("end", ["resets", "closes", "hangs"])
def test_an_error_within_a_stream_is_reported_once(gateway, replay, end, flask):
    """What the connection does after it adds nothing."""
    error = b'data: {"error":{"message":"out of memory","code":500}}\n\n'
    replay.scripts["done"] = ending = Ending(end, SAID, error)
    gateway.publish(CONFIG, [backend("up", replay.url, "done", idle_timeout_seconds=1)])
    before = gateway.settled()
    with Client(gateway.port, "done", flask=flask) as client:
        assert client.read() == SAID + error
    ending.seen.set()
    changes = flat(before, gateway.settled())
    assert changes["requests_total{up,done,502}"] == 1
    assert changes["stream_ends_total{up,in_band_error}"] == 1
