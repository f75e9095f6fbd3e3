"""Server-sent events at any packet border, and what a stream says of itself."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.proxy.sse import EventReader, StreamObserver, usage_of

MIXED = (
    b": a comment\n\nevent: x\nid: 7\ndata: one\n\n"
    b"data: two\r\n\r\ndata: three\r\rdata: fo\ndata:ur\n\n\n\n" + "data: größer ✓\n\n".encode() + b"data: [DONE]"
)
EVENTS = [b"one", b"two", b"three", b"fo\nur", "größer ✓".encode(), b"[DONE]"]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % len(data) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(at)]


@given(st.lists(st.integers(0, 1000), max_size=40))
def test_any_packet_borders(cuts):
    reader = EventReader()
    events = [event for piece in pieces(MIXED, cuts) for event in reader.feed(piece)]
    assert events + reader.rest() == EVENTS


def test_one_byte_at_a_time():
    reader = EventReader()
    events = [event for byte in MIXED for event in reader.feed(bytes([byte]))]
    assert events + reader.rest() == EVENTS


def test_a_megabyte_in_small_pieces():
    data = b"data: " + b"x" * 1_000_000 + b"\n\n"
    reader = EventReader()
    events = [event for start in range(0, len(data), 100) for event in reader.feed(data[start : start + 100])]
    assert [len(event) for event in events] == [1_000_000]


def observe(*events: object) -> StreamObserver:
    observer = StreamObserver()
    for event in events:
        text = event if isinstance(event, str) else json.dumps(event)
        observer.feed(f"data: {text}\n\n".encode())
    return observer


def delta(**fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


@pytest.mark.parametrize(
    "event",
    [
        delta(content="x"),
        delta(reasoning_content="hm"),
        delta(reasoning="hm"),
        delta(tool_calls=[{"index": 0}]),
        delta(refusal="no"),
        {"choices": [{"text": "x"}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"type": "response.created"},
        "not json",
        "[DONE]",
    ],
)
def test_content(event):
    assert observe(event).content


@pytest.mark.parametrize("event", [delta(role="assistant"), delta(role="assistant", content=""), {"choices": []}])
def test_not_yet_content(event):
    assert not observe(event).content


def test_end():
    finish = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    assert not observe(delta(content="x")).finished
    assert observe(delta(content="x"), finish).finished
    assert observe(delta(content="x"), "[DONE]").finished


def test_usage_is_that_of_the_last_event_that_has_one():
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    observer = observe(
        {**delta(content="x"), "usage": None}, {**delta(content="y"), "usage": {"prompt_tokens": 1}},
        {"choices": [], "usage": usage}, "[DONE]",
    )  # fmt: skip
    assert (observer.usage.prompt_tokens, observer.usage.completion_tokens) == (3, 5)


def test_error_within_the_stream():
    assert observe({"error": {"message": "out of memory"}}).error == "out of memory"
    assert observe({"error": "broken"}).error == "broken"
    assert observe({**delta(content='say "error"'), "error": None}).error is None


@pytest.mark.parametrize("answer", [b"{}", b'{"usage": null}', b'{"usage": 3}', b"not json", b'{"a": "\\"usage\\""}'])
def test_no_usage(answer):
    assert usage_of(answer) is None
