"""Streams through the gateway: the bytes, the times, the tokens, and how they end."""

import asyncio
import contextlib
import gzip
import http.client
import json
import random
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import openai
import pytest

from nexus.config import Config
from nexus.config.records import CircuitBreaker, Routing, Server
from tests.corpus import RECORDINGS
from tests.support.figures import moved
from tests.support.load import chat, run
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, Workers, backend, backend_toml
from tests.support.replay import HEAD, Replay, in_packets, whole

pytestmark = pytest.mark.e2e

CONFIG = Config(routing=Routing(max_retries=0), circuit_breaker=CircuitBreaker(enabled=False))
NAMES = [f"r{number}" for number in range(len(RECORDINGS))]
MOVED = (
    "nexus_requests_total",
    "nexus_usage_total",
    "nexus_stream_ends_total",
    "nexus_stream_events_total",
    "nexus_tokens_total_sum",
    "nexus_token_details_total",
    "nexus_time_to_first_token_seconds_count",
    "nexus_time_per_output_token_seconds_count",
    "nexus_stream_longest_gap_seconds_count",
)


@pytest.fixture(scope="module")
def replay():
    with Replay() as replay:
        yield replay


@pytest.fixture(scope="module")
def gateway(module_dir: Path, replay: Replay):
    config = CONFIG
    others = ["learn", "refuses", "broken", "slow", "large", "whole", "timed"]
    with Workers(module_dir, config, [backend("up", replay.url, *NAMES, *others)], workers=1) as workers:
        yield workers


def stream(gateway, model: str, **more) -> tuple[int, bytes]:
    got: list[tuple[int, bytes]] = []
    run(gateway.port, [chat("x", model, stream=True, **more)], concurrency=1, seen=lambda _, s, c: got.append((s, c)))
    return got[0]


def flat(before, after) -> dict[str, float]:
    return {
        f"{name.removeprefix('nexus_')}{{{','.join(v for _, v in sorted(labels))}}}": change
        for (name, labels), change in moved(before, after, MOVED).items()
    }


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100_000])
@pytest.mark.parametrize("number", range(len(RECORDINGS)), ids=lambda n: RECORDINGS[n].name)
def test_recordings(gateway, replay, number, size):
    """Whatever the packets: the client gets the bytes less the usage that it did not ask for, and the series are exact."""
    recording, model = RECORDINGS[number], NAMES[number]
    if len(recording.data) > 10_000 and size < 64:
        size *= 64
    replay.scripts[model] = in_packets(recording.data, size, pause_at=recording.pause_at)
    before = gateway.settled()
    status, content = stream(gateway, model)
    assert status == 200
    end = "in_band_error" if recording.error else "complete" if recording.finished else "upstream_truncated"
    if end == "upstream_truncated":
        assert content.startswith(recording.shown)
        assert (
            json.loads(content[len(recording.shown) :].removeprefix(b"data: "))["error"]["code"] == "stream_truncated"
        )
    else:
        assert content == recording.shown
    counted = 200 if end == "complete" else 502
    tokens = recording.usage[1] if recording.usage else recording.counted
    expected = {
        f"requests_total{{up,{model},{counted}}}": 1,
        f"usage_total{{{'requested' if recording.usage else 'counted'}}}": 1,
        f"stream_ends_total{{up,{end}}}": 1,
        f"stream_events_total{{up,{model}}}": recording.events,
        f"tokens_total_sum{{up,{model},completion}}": tokens,
        f"time_to_first_token_seconds_count{{up,{model}}}": 1,
        f"stream_longest_gap_seconds_count{{up,{model}}}": 1,
    }
    if recording.usage:
        expected[f"tokens_total_sum{{up,{model},prompt}}"] = recording.usage[0]
    if tokens > 1:
        by = "tokens" if recording.usage else "events"
        expected[f"time_per_output_token_seconds_count{{up,{by},{model}}}"] = 1
    for kind, amount in zip(("cached", "reasoning"), recording.details, strict=True):
        if amount:
            expected[f"token_details_total{{up,{model},{kind}}}"] = amount
    assert flat(before, gateway.settled()) == expected
    assert replay.asked[-1]["stream_options"] == {"include_usage": True}


def test_a_client_that_asks_for_the_usage_sees_it(gateway, replay):
    recording = RECORDINGS[0]
    replay.scripts["r0"] = in_packets(recording.data, 50)
    before = gateway.settled()
    assert stream(gateway, "r0", stream_options={"include_usage": True}) == (200, recording.data)
    assert flat(before, gateway.settled())["usage_total{reported}"] == 1


def test_a_backend_that_refuses_to_be_asked(gateway, replay):
    """It is asked as the client asked, once more, and from then on at once; a bad request is still the client's."""
    gateway.publish(CONFIG, [backend("shy", replay.url, "refuses", "learn")])
    recording = RECORDINGS[1]
    good = in_packets(recording.data, 10_000)
    refusal = whole(422, {"error": {"message": "stream_options: extra fields not permitted"}})
    replay.scripts["refuses"] = lambda body, sock: (refusal if "stream_options" in body else good)(body, sock)
    replay.scripts["learn"] = whole(400, {"error": {"message": "bad"}})
    replay.asked.clear()
    attempts = ("nexus_upstream_attempts_total", "nexus_retries_total")
    before = gateway.settled()
    assert stream(gateway, "learn")[0] == 400
    assert ["stream_options" in body for body in replay.asked] == [True, False]
    assert stream(gateway, "refuses") == (200, recording.data)
    assert stream(gateway, "refuses") == (200, recording.data)
    assert ["stream_options" in body for body in replay.asked] == [True, False, True, False, False]
    changes = {key[0]: 0.0 for key in moved(before, gateway.settled(), attempts)}
    for key, change in moved(before, gateway.settled(), attempts).items():
        changes[key[0]] += change
    assert changes == {"nexus_upstream_attempts_total": 5, "nexus_retries_total": 2}, "as many as it was asked"


def test_a_backend_that_comes_to_refuse_to_be_asked(gateway, replay):
    """Another server may stand at its address by now; a client's own mistake is still told at once."""
    gateway.publish(CONFIG, [backend("new", replay.url, "refuses", "learn")])
    good = in_packets(RECORDINGS[1].data, 10_000)
    refusal = whole(400, {"error": {"message": "stream_options: extra fields not permitted"}})
    replay.asked.clear()
    replay.scripts["refuses"] = good
    assert stream(gateway, "refuses")[0] == 200
    replay.scripts["learn"] = whole(400, {"error": {"message": "bad"}})
    status, content = stream(gateway, "learn")
    assert (status, json.loads(content)["error"]["message"]) == (400, "bad")
    replay.scripts["refuses"] = lambda body, sock: (refusal if "stream_options" in body else good)(body, sock)
    assert stream(gateway, "refuses") == (200, RECORDINGS[1].data)
    assert stream(gateway, "refuses") == (200, RECORDINGS[1].data)
    assert ["stream_options" in body for body in replay.asked] == [True, True, True, False, False]


def test_a_refusal_to_be_asked_is_no_time_of_the_gateways(gateway, replay):
    gateway.publish(CONFIG, [backend("coy", replay.url, "refuses")])
    good = in_packets(RECORDINGS[1].data, 10_000)
    refusal = whole(400, {"error": {"message": "stream_options: extra fields not permitted"}})

    def answer(body, sock: socket.socket) -> None:
        time.sleep(0.5)
        (refusal if "stream_options" in body else good)(body, sock)

    replay.scripts["refuses"] = answer
    before = gateway.settled()
    assert stream(gateway, "refuses")[0] == 200
    overhead = "nexus_gateway_overhead_seconds_sum"
    assert 0 < gateway.settled().value(overhead, phase="before") - before.value(overhead, phase="before") < 0.25


def test_a_refusal_within_a_stream_is_the_clients(gateway, replay):
    """It is tried nowhere else and speaks against no backend, however often; as a status of 400 would."""
    error = {"message": "This model's maximum context length is 4096 tokens", "type": "BadRequestError", "code": 400}
    event = b"data: " + json.dumps({"error": error}).encode() + b"\n\ndata: [DONE]\n\n"
    replay.scripts["refuses"] = in_packets(event, 10_000)
    replay.asked.clear()
    names = ["a", "b"]
    gateway.publish(
        Config(circuit_breaker=CircuitBreaker(failures=2)), [backend(n, replay.url, "refuses") for n in names]
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
        b'data: {"choices":[{"delta":%b}]}\n\n' % delta for delta in (b'{"role":"assistant"}', b'{"content":"x"}')
    )

    def prefill(_, sock: socket.socket) -> None:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n%x\r\n%b\r\n" % (len(role), role))
        time.sleep(0.8)
        sock.sendall(b"%x\r\n%b\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n" % (len(word), word))

    replay.scripts["prefill"] = prefill
    patient = backend("up", replay.url, "prefill", first_byte_timeout_seconds=5, idle_timeout_seconds=0.3)
    gateway.publish(CONFIG, [patient])
    assert stream(gateway, "prefill") == (200, role + word + b"data: [DONE]\n\n")
    gateway.publish(
        CONFIG, [backend("up", replay.url, "prefill", first_byte_timeout_seconds=0.4, idle_timeout_seconds=5)]
    )
    began = time.monotonic()
    status, content = stream(gateway, "prefill")
    assert (status, json.loads(content)["error"]["code"]) == (504, "first_byte_timeout")
    assert time.monotonic() - began < 0.75


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize(("end", "code"), [(b"", "stream_reset"), (b"0\r\n\r\n", "stream_truncated")])
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
    status, content = stream(gateway, "broken", **({"stream_options": {"include_usage": True}} if asks else {}))
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
    before = gateway.settled()
    assert b"stream_idle" in stream(gateway, "silent")[1]
    asked_on.set()
    changes = {
        key[0]: change for key, change in moved(before, gateway.settled(), (f"{gap}_sum", f"{gap}_count")).items()
    }
    assert changes[f"{gap}_count"] == 1
    assert 0.35 < changes[f"{gap}_sum"] < 2


def test_an_event_that_cannot_be_understood_breaks_nothing(gateway, replay):
    """Nested as deep as it is, it is the client's to read."""
    deep = (
        b'data: {"choices":[{"delta":{"content":"x"}}]}\n\ndata: {"usage":'
        + b"[" * 5000
        + b"]" * 5000
        + b"}\n\n"
        + b"data: [DONE]\n\n"
    )
    replay.scripts["deep"] = in_packets(deep, 1000)
    gateway.publish(CONFIG, [backend("up", replay.url, "deep")])
    assert stream(gateway, "deep") == (200, deep)


def test_a_client_that_closes_at_done_has_all_it_asked_for(gateway, replay):
    """Many clients close at `[DONE]`, before the body's last chunk: that is no disconnect."""
    asked_on = threading.Event()

    def send(_, sock: socket.socket) -> None:
        event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\ndata: [DONE]\n\n'
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n" % (len(event), event))
        asked_on.wait(10)

    replay.scripts["at-done"] = send
    gateway.publish(CONFIG, [backend("up", replay.url, "at-done")])
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock:
        body = json.dumps(chat("x", "at-done", stream=True).body).encode()
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        received = b""
        while b"[DONE]" not in received:
            received += sock.recv(65536)
    after = until(lambda: (s := gateway.settled()).total("nexus_requests_total", model="at_done") and s)
    asked_on.set()
    assert after.series("nexus_requests_total", "model", "status")["at_done", "200"] == 1
    assert after.total("nexus_requests_total", model="at_done") == 1


def test_an_encoded_stream_goes_on_whole(gateway, replay):
    """Some backends compress whatever they are asked; the client is told, and can decode it."""
    gateway.publish(CONFIG, [backend("up", replay.url, "whole")])
    content = gzip.compress(RECORDINGS[1].data)

    def send(_, sock: socket.socket) -> None:
        head = HEAD + b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        sock.sendall(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))

    replay.scripts["whole"] = send
    before = gateway.settled()
    assert stream(gateway, "whole") == (200, content)
    assert flat(before, gateway.settled()) == {"requests_total{up,whole,200}": 1, "usage_total{none}": 1}


def test_whole_answers(gateway, replay):
    gateway.publish(CONFIG, [backend("up", replay.url, "whole")])
    usage = {"prompt_tokens": 7, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}
    replay.scripts["whole"] = whole(200, {"data": [], "usage": usage})
    before = gateway.settled()
    run(gateway.port, [chat("x", "whole")], concurrency=1, seen=lambda *_: None)
    replay.scripts["whole"] = whole(200, {"choices": []})
    run(gateway.port, [chat("x", "whole")], concurrency=1, seen=lambda *_: None)
    assert flat(before, gateway.settled()) == {
        "requests_total{up,whole,200}": 2,
        "usage_total{reported}": 1,
        "usage_total{none}": 1,
        "tokens_total_sum{up,whole,prompt}": 7,
        "token_details_total{up,whole,cached}": 3,
    }


def test_a_backend_that_tells_nonsense_is_counted_all_the_same(gateway, replay):
    """What cannot be a count of tokens moves no series of them; the request is recorded as any other."""
    gateway.publish(CONFIG, [backend("up", replay.url, "whole")])
    before = gateway.settled()
    replay.scripts["whole"] = whole(200, {"usage": {"prompt_tokens": 10**400, "completion_tokens": -3}})
    assert stream(gateway, "whole")[0] == 200
    event = b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{}}\n\n'
    replay.scripts["whole"] = in_packets(2 * event + b"data: [DONE]\n\n", 10_000)
    assert stream(gateway, "whole")[0] == 200
    after = gateway.settled()
    changes = flat(before, after)
    assert {name: change for name, change in changes.items() if "gap" not in name} == {
        "requests_total{up,whole,200}": 2,
        "usage_total{none}": 1,
        "usage_total{counted}": 1,
        "stream_ends_total{up,complete}": 1,
        "stream_events_total{up,whole}": 2,
        "tokens_total_sum{up,whole,completion}": 2,
        "time_to_first_token_seconds_count{up,whole}": 1,
        "time_per_output_token_seconds_count{up,events,whole}": 1,
    }
    assert after.value("nexus_accounting_imbalance") == 0


def test_tokens_of_a_client_that_leaves_are_counted(gateway, replay):
    gateway.publish(Config(), [backend("up", replay.url, "slow")])
    going = threading.Event()

    def send(_, sock: socket.socket) -> None:
        event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n" % (3 * len(event), 3 * event))
        going.wait(10)

    replay.scripts["slow"] = send
    before = gateway.settled()
    sock = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
    body = json.dumps(chat("x", "slow", stream=True).body).encode()
    sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    read = b""
    while read.count(b"data: {") < 3:
        read += sock.recv(65536)
    assert gateway.scrape().value("nexus_streams_active") == 1
    assert gateway.scrape().value("nexus_time_to_first_token_seconds_count", model="slow", backend="up") == 1, "already"
    sock.close()
    after = until(lambda: (s := gateway.settled()).total("nexus_stream_ends_total", reason="client_disconnect") and s)
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
    """Nothing piles up in the gateway: what the backend could send is what fits into the sockets on the way."""
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
    sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
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
    assert gateway.settled().value("nexus_requests_total", model="large", backend="up", status="200") == 1


def test_times_at_two_hundred_streams(gateway, replay):
    """Two hundred streams at once, begun one after another: the gateway's times are those of client and backend, which
    share a clock, within five milliseconds."""
    gateway.publish(Config(server=Server(max_concurrent_requests=1000)), [backend("up", replay.url, "timed")])
    count, events, first_s, gap_s = 200, 5, 3.0, 0.2
    asked: dict[str, float] = {}
    said: dict[str, list[float]] = {}

    def send(body, sock: socket.socket) -> None:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        times = said[body["user"]] = []
        for number in range(events):
            time.sleep(max(0.0, asked[body["user"]] + first_s + number * gap_s - time.monotonic()))
            event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
            times.append(time.monotonic())
            sock.sendall(b"%x\r\n%s\r\n" % (len(event), event))
        times.append(time.monotonic())
        sock.sendall(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def client(name: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        connection.connect()
        asked[name] = time.monotonic()
        body = json.dumps(chat("x", "timed", stream=True, user=name).body)
        connection.request("POST", "/v1/chat/completions", body, {"x-request-id": name})
        connection.getresponse().read()
        connection.close()

    replay.scripts["timed"] = send
    before = gateway.settled()
    clients = []
    for number in range(count):
        clients.append(threading.Thread(target=client, args=(f"timed-{number}",)))
        clients[-1].start()
        time.sleep(0.01)
    for one in clients:
        one.join()
    after = gateway.settled()
    lines = {line["id"]: line for line in gateway.lines("request") if line["id"].startswith("timed-")}
    assert len(lines) == len(said) == count

    def off_by(measured: str, last: int) -> list[float]:
        """By how much each was measured wrong, in seconds; smallest first."""
        return sorted(abs(line[measured] / 1000 - (said[name][last] - asked[name])) for name, line in lines.items())

    for measured, last in (("ttft_ms", 0), ("duration_ms", -1)):
        errors = off_by(measured, last)
        print(
            f"{measured}: off by {errors[count // 2] * 1000:.2f} ms in the middle, {errors[-1] * 1000:.2f} ms at most"
        )
        assert errors[int(count * 0.9)] < 0.005, "but for pauses of the machine"
    sums = {key[0]: value for key, value in moved(
        before, after, ("nexus_time_to_first_token_seconds_sum", "nexus_time_per_output_token_seconds_sum")
    ).items()}  # fmt: skip
    mean = sum(line["ttft_ms"] for line in lines.values()) / 1000 / count
    assert sums["nexus_time_to_first_token_seconds_sum"] / count == pytest.approx(mean, abs=0.001)
    spoken = sum((times[-1] - times[0]) / (events - 1) for times in said.values()) / count
    assert sums["nexus_time_per_output_token_seconds_sum"] / count == pytest.approx(spoken, abs=0.002)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_real_client(tmp_path: Path, kind: str):
    """Two hundred streams at once; a tenth is abandoned, a tenth broken off by the backend: each is counted as it was."""
    with (
        Demo(tmp_path, name="d", models=["m"], pace=100, length=5_000, usage="asked") as demo,
        Gateway(
            tmp_path, backend_toml(demo, total_timeout_seconds=60) + "[circuit_breaker]\nenabled = false\n", workers=2
        ) as gateway,
    ):
        plan = ["leave"] * 20 + ["break"] * 20 + ["usage"] * 80 + ["plain"] * 80
        random.Random(3).shuffle(plan)
        seen: Counter[str] = Counter()
        tokens = [0]

        def arguments(role: str) -> dict:
            return {
                "model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True,
                **({"stream_options": {"include_usage": True}} if role == "usage" else {}),
                **({"max_tokens": 60} if role != "leave" else {}),
                "extra_headers": {"x-demo-fault": "break_after=20"} if role == "break" else {},
            }  # fmt: skip

        def take(role: str, chunk, events: int) -> bool:
            if chunk.usage is not None:
                tokens[0] += chunk.usage.completion_tokens
            if not chunk.choices:
                assert role == "usage", "only who asks for the usage sees it"
            return role == "leave" and events >= 10

        if kind == "sync":

            def one(role: str) -> None:
                events = 0
                try:
                    with client.chat.completions.create(**arguments(role)) as answer:
                        for chunk in answer:
                            events += 1
                            if take(role, chunk, events):
                                break
                    seen[role] += 1
                except openai.APIError as error:
                    seen["broken" if role == "break" and "broke off" in str(error) else str(error)] += 1

            with openai.OpenAI(base_url=f"{gateway.base}/v1", api_key="x", max_retries=0, timeout=60) as client:
                threads = [threading.Thread(target=one, args=(role,)) for role in plan]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        else:

            async def one_async(client: openai.AsyncOpenAI, role: str) -> None:
                events = 0
                try:
                    async with await client.chat.completions.create(**arguments(role)) as answer:
                        async for chunk in answer:
                            events += 1
                            if take(role, chunk, events):
                                break
                    seen[role] += 1
                except openai.APIError as error:
                    seen["broken" if role == "break" and "broke off" in str(error) else str(error)] += 1

            async def all_of_them() -> None:
                async with openai.AsyncOpenAI(
                    base_url=f"{gateway.base}/v1", api_key="x", max_retries=0, timeout=60
                ) as client:
                    await asyncio.gather(*(one_async(client, role) for role in plan))

            asyncio.run(all_of_them())
        assert seen == {"leave": 20, "broken": 20, "usage": 80, "plain": 80}
        assert tokens[0] == 80 * 60
        scrape = until(lambda: (s := gateway.settled()).total("nexus_requests_total") == 200 and s)
        assert scrape.series("nexus_requests_total", "status") == {("200",): 160, ("499",): 20, ("502",): 20}
        assert scrape.series("nexus_stream_ends_total", "reason") == {
            ("complete",): 160, ("client_disconnect",): 20, ("upstream_reset",): 20,
        }  # fmt: skip
        assert scrape.series("nexus_usage_total", "source") == {("reported",): 80, ("requested",): 80, ("counted",): 40}
        assert scrape.series("nexus_errors_total", "error_type") == {
            ("client_disconnect",): 20,
            ("stream_interrupted",): 20,
        }
        assert scrape.total("nexus_time_to_first_token_seconds_count") == 200
        assert scrape.total("nexus_time_per_output_token_seconds_count", by="tokens") == 160
        assert scrape.total("nexus_time_per_output_token_seconds_count", by="events") == 40
        assert scrape.value("nexus_tokens_total_count", model="m", backend="d", type="prompt") == 160
        counted = 20 * 19  # the role, then nineteen words, then it is cut
        left = scrape.value("nexus_tokens_total_sum", model="m", backend="d", type="completion") - 160 * 60 - counted
        assert left >= 20 * 9, "what was sent to those who left, at least what they read"
        assert scrape.value("nexus_streams_active") == 0
        assert scrape.value("nexus_accounting_imbalance") == 0
        assert scrape.value("nexus_pending_requests", backend="d") == 0
        assert scrape.value("nexus_gateway_overhead_seconds_count", phase="before") == 200
        until(lambda: demo.tally()["open"] == 0)
        streams = gateway.stats()["streams"]
        assert streams["active"] == 0
        assert streams["ends"] == {"complete": 160, "client_disconnect": 20, "upstream_reset": 20}
        assert 20 < streams["average_tokens_per_second"] < 150
        assert streams["average_ttft_ms"] > 0


def test_comments_while_it_waits(tmp_path: Path):
    """Where they are on: the head is out with the first, and what fails later is told within the stream."""
    with (
        Demo(tmp_path, name="d", models=["m"], pace=0, fault="delay=0.7") as demo,
        Demo(tmp_path, name="e", models=["sick"], pace=0, fault="delay=0.5,status=500") as sick,
    ):
        config = Config(server=Server(stream_keepalive_seconds=0.2), routing=Routing(max_retries=0))
        with Workers(tmp_path, config, [backend("d", demo.url, "m"), backend("e", sick.url, "sick")]) as workers:
            sick.fault("hang")
            status, content = stream(workers, "m")
            assert status == 200
            assert content.startswith(b": waiting\n\n: waiting\n\n: waiting\n\ndata: {")
            assert content.endswith(b"data: [DONE]\n\n")
            workers.publish(
                config, [backend("d", demo.url, "m"), backend("e", sick.url, "sick", first_byte_timeout_seconds=0.5)]
            )
            before = workers.settled()
            status, content = stream(workers, "sick")
            assert status == 200
            *comments, event = content.strip().split(b"\n\n")
            assert comments == [b": waiting"] * 2
            assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "first_byte_timeout"
            assert flat(before, workers.settled()) == {"requests_total{e,sick,504}": 1}
            demo.fault("")
            assert stream(workers, "m")[1].startswith(b"data: "), "nothing is added where it is not needed"
            with contextlib.suppress(OSError):
                sick.fault("hang")
            connection = http.client.HTTPConnection("127.0.0.1", workers.port, timeout=10)
            connection.request("POST", "/v1/chat/completions", json.dumps(chat("x", "sick", stream=True).body))
            assert connection.getresponse().readline() == b": waiting\n"
            connection.close()
            scrape = until(lambda: (s := workers.settled()).total("nexus_requests_total") == 4 and s)
            assert scrape.total("nexus_requests_total", model="sick") == 2
            assert scrape.value("nexus_accounting_imbalance") == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>\r\nno\r\n</html>", "<html>\r\nno\r\n</html>"),
        (b'{\n "detail": "no"\n}', '{\n "detail": "no"\n}'),
        (b'{\n "error": {"message": "no"}\n}', "no"),
    ],
)
def test_a_backends_own_refusal_after_comments(gateway, replay, answer, message):
    """Whatever form it has, the client's library is told of an error."""

    def refuse(_, sock: socket.socket) -> None:
        time.sleep(0.4)
        sock.sendall(b"HTTP/1.1 404 X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(answer), answer))

    replay.scripts["gone"] = refuse
    gateway.publish(Config(server=Server(stream_keepalive_seconds=0.1)), [backend("up", replay.url, "gone")])
    before = gateway.settled()
    status, content = stream(gateway, "gone")
    assert status == 200
    *comments, event = content.strip().split(b"\n\n")
    assert set(comments) == {b": waiting"}
    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == message
    assert flat(before, gateway.settled()) == {"requests_total{up,gone,404}": 1}


def test_at_a_stop_streams_are_told(tmp_path: Path):
    """They get their grace; what goes on for longer ends with an error event, what has no answer yet with a 503."""
    with Demo(tmp_path, name="d", models=["m"], pace=20, length=100_000) as demo:
        gateway = Gateway(tmp_path, backend_toml(demo), workers=2, environ={"NEXUS_GRACEFUL_TIMEOUT": "3"})
        results: list[tuple[str, int, bytes]] = []
        asks = [
            *[chat("short", "m", stream=True, max_tokens=30)] * 3,
            *[chat("long", "m", stream=True)] * 3,
        ]
        load = threading.Thread(
            target=run, args=(gateway.port, asks),
            kwargs={"concurrency": 6, "seen": lambda ask, status, content: results.append((ask.kind, status, content))},
        )  # fmt: skip
        load.start()
        until(lambda: demo.tally()["open"] == 6)
        demo.fault("hang")
        waiting = threading.Thread(
            target=run, args=(gateway.port, [chat("waiting", "m")]),
            kwargs={"concurrency": 1, "seen": lambda ask, status, content: results.append((ask.kind, status, content))},
        )  # fmt: skip
        waiting.start()
        until(lambda: demo.tally()["open"] == 7)
        until(lambda: gateway.scrape().value("nexus_streams_active") == 6)
        began = time.monotonic()
        gateway.send(signal.SIGTERM)
        load.join(20)
        waiting.join(20)
        assert gateway.child.wait(20) == 0
        assert time.monotonic() - began < 8
        assert sorted((kind, status) for kind, status, _ in results) == [
            *[("long", 200)] * 3, *[("short", 200)] * 3, ("waiting", 503),
        ]  # fmt: skip
        for kind, _, content in results:
            if kind == "short":
                assert content.endswith(b"data: [DONE]\n\n")
            elif kind == "long":
                last = content.strip().split(b"\n\n")[-1].removeprefix(b"data: ")
                assert json.loads(last)["error"]["code"] == "shutdown"
        lines = [(line["status"], line.get("fault"), line.get("end")) for line in gateway.lines("request")]
        assert sorted(lines, key=str) == [
            *[(200, None, "complete")] * 3, *[(502, "shutdown", "shutdown")] * 3, (503, "stopping", None),
        ]  # fmt: skip


def test_at_a_stop_a_slow_client_of_comments_is_told(tmp_path: Path):
    """It takes less than comes, so that the gateway is in the middle of sending to it when the grace is over."""
    with Demo(tmp_path, name="d", models=["m"], pace=0, length=400_000, fault="delay=0.5") as demo:
        gateway = Gateway(
            tmp_path, backend_toml(demo), workers=1, server="stream_keepalive_seconds = 0.2",
            environ={"NEXUS_GRACEFUL_TIMEOUT": "3"},
        )  # fmt: skip
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", gateway.port))
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
            content = b""
            until(lambda: gateway.scrape().value("nexus_streams_active") == 1)
            gateway.send(signal.SIGTERM)
            while piece := client.recv(4096):
                content += piece
                if len(content) < 2_000_000:
                    time.sleep(0.002)
        assert gateway.child.wait(20) == 0
        assert b": waiting" in content
        assert content.endswith(b"\r\n0\r\n\r\n"), "the chunks are whole"
        assert b'"code":"shutdown"' in content[-300:]
        [line] = gateway.lines("request")
        assert (line["status"], line["fault"]) == (502, "shutdown")
