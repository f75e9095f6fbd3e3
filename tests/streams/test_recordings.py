"""A corpus of streams, cut at every border: the client's bytes and every series are exact."""

import gzip
import json
import socket
import time

import pytest

from nexus.config import Config
from nexus.config.routing_records import Routing
from tests.corpus import RECORDINGS, recorded
from tests.streams.exact import CONFIG, NAMES, Client, flat, stream
from tests.support.load import chat, run
from tests.support.processes import backend
from tests.support.replay import HEAD, Replay, in_packets, whole

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100_000])
@pytest.mark.parametrize("number", range(len(RECORDINGS)), ids=lambda n: RECORDINGS[n].name)
def test_recordings(gateway, replay, number, size):
    """Whatever the packets: the client gets the bytes less the usage that it did not ask for,
    and the series are exact."""
    recording, model = RECORDINGS[number], NAMES[number]
    if len(recording.data) > 10_000 and size < 64:
        size *= 64
    replay.scripts[model] = in_packets(
        recording.data, size, pause_at=recording.pause_at, head=recording.head
    )
    before = gateway.settled()
    status, content = stream(gateway, model)
    assert status == 200
    end = (
        "in_band_error"
        if recording.error
        else "complete"
        if recording.finished
        else "upstream_truncated"
    )
    if end == "upstream_truncated":
        assert content.startswith(recording.shown)
        assert (
            json.loads(content[len(recording.shown) :].removeprefix(b"data: "))["error"]["code"]
            == "stream_truncated"
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


def test_whole_responses(gateway, replay):
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
    """What cannot be a count of tokens moves no series of them; the request is recorded as any
    other."""
    gateway.publish(CONFIG, [backend("up", replay.url, "whole")])
    before = gateway.settled()
    replay.scripts["whole"] = whole(
        200, {"usage": {"prompt_tokens": 10**400, "completion_tokens": -3}}
    )
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


def test_an_encoded_stream_goes_on_whole(gateway, replay):
    """Some backends compress whatever is requested; the client is told, and can decode it."""
    gateway.publish(CONFIG, [backend("up", replay.url, "whole")])
    content = gzip.compress(RECORDINGS[1].data)

    def send(_, sock: socket.socket) -> None:
        head = (
            HEAD
            + b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        )
        sock.sendall(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))

    replay.scripts["whole"] = send
    before = gateway.settled()
    assert stream(gateway, "whole") == (200, content)
    assert flat(before, gateway.settled()) == {
        "requests_total{up,whole,200}": 1,
        "usage_total{none}": 1,
    }


@pytest.mark.parametrize("flask", [False, True], ids=["fast path", "flask"])
@pytest.mark.parametrize(
    "prefix", [b"", b"\xef\xbb\xbf", b": hello\n\n", b"event: message\r\n", b"\n\n"]
)
@pytest.mark.parametrize(
    "kind", [b"text/plain", b"application/json", b"application/octet-stream", b""]
)
def test_a_stream_under_another_content_type(gateway, replay, kind, prefix, flask):
    """If a stream was requested, its first bytes tell it, and the client gets it under the
    content type of streams."""
    body = prefix + RECORDINGS[0].data
    head = b"HTTP/1.1 200 OK\r\n" + (b"content-type: %b\r\n" % kind if kind else b"")

    def send(_, sock: socket.socket) -> None:
        sock.sendall(head + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n")
        for part in (body[:1], body[1:7], body[7:], b""):
            sock.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            time.sleep(0.01)

    replay.scripts["whole"] = send
    gateway.publish(CONFIG, [backend("up", replay.url, "whole")])
    before = gateway.settled()
    with Client(gateway.port, "whole", flask=flask) as client:
        assert client.read() == prefix + RECORDINGS[0].shown
        assert client.response.getheader("content-type") == "text/event-stream; charset=utf-8"
    changes = flat(before, gateway.settled())
    assert changes["stream_ends_total{up,complete}"] == 1
    assert changes["tokens_total_sum{up,whole,completion}"] == 4


@pytest.mark.parametrize("flask", [False, True], ids=["fast path", "flask"])
@pytest.mark.parametrize("kind", [b"application/json", b"text/plain"])
@pytest.mark.parametrize(
    "content", [b'{"choices":[],"usage":{"prompt_tokens":1}}', b'{"choices":[{"score":NaN}]}']
)
def test_a_whole_response_where_a_stream_was_requested(gateway, replay, content, kind, flask):
    """Some backends do not stream; nothing of what was looked at is lost."""

    def send(_, sock: socket.socket) -> None:
        head = (
            b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n"
            b"\r\n"
        )
        sock.sendall(head % (kind, len(content)))
        for at in range(len(content)):
            sock.sendall(content[at : at + 1])

    replay.scripts["whole"] = send
    gateway.publish(CONFIG, [backend("up", replay.url, "whole")])
    with Client(gateway.port, "whole", flask=flask) as client:
        assert client.read() == content
        assert client.response.getheader("content-type").startswith(kind.decode())


def test_whole_responses_that_are_not_strict_json(gateway, replay):
    """They pass as they came, and their usage is counted."""
    gateway.publish(CONFIG, [backend("up", replay.url, "whole")])
    content = (
        b'\xef\xbb\xbf{"data":[{"embedding":[NaN,-Infinity]}],"x":"\\ud83d",'
        b'"usage":{"prompt_tokens":7}}'
    )
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
        b"connection: close\r\n\r\n"
    )
    replay.scripts["whole"] = lambda _, sock: sock.sendall(head % len(content) + content)
    before = gateway.settled()
    got: list[tuple[int, bytes]] = []
    run(gateway.port, [chat("x", "whole")], concurrency=1, seen=lambda _, s, c: got.append((s, c)))
    assert got == [(200, content)]
    assert flat(before, gateway.settled()) == {
        "requests_total{up,whole,200}": 1,
        "usage_total{reported}": 1,
        "tokens_total_sum{up,whole,prompt}": 7,
    }


def test_a_stream_without_any_event_is_no_response(gateway, replay):
    """So llama-cpp-python responds to a prompt that is too long: the next backend is asked."""
    recording = recorded("llama-cpp-python-0.3.36-too-long")
    head = recording.head + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n"
    replay.scripts["whole"] = lambda _, sock: sock.sendall(head)
    with Replay() as second:
        second.scripts["whole"] = in_packets(RECORDINGS[1].data, 10_000)
        first = backend("up", replay.url, "whole", priority=1)
        config = Config(routing=Routing(strategy="priority_only"))
        gateway.publish(config, [first, backend("two", second.url, "whole", priority=50)])
        before = gateway.settled()
        assert stream(gateway, "whole") == (200, RECORDINGS[1].data)
        after = gateway.settled()
    assert flat(before, after)["requests_total{two,whole,200}"] == 1
    attempts = {"backend": "up", "outcome": "backend_error"}
    assert after.total("nexus_upstream_attempts_total", **attempts) - before.total(
        "nexus_upstream_attempts_total", **attempts
    ) == 1  # fmt: skip
