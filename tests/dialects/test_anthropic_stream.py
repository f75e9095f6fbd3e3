"""Anthropic's streams: what an event means, however the stream is cut into packets."""

import json

import pytest

from nexus.dialects.anthropic.stream import open_stream
from nexus.dialects.anthropic.usage import usage_in_response
from nexus.dialects.base import Usage


def event(kind: str, **fields) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def start(**usage) -> bytes:
    return event("message_start", message={"id": "msg_1", "usage": usage})


def delta(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def end(**usage) -> bytes:
    stop = event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
    return stop + event("message_stop")


BLOCK = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
STREAM = start(input_tokens=9) + BLOCK + event("ping") + delta("a") + delta("b\r") + delta("c")
WHOLE = STREAM + end(output_tokens=3)


def read(data: bytes, size: int = 0):
    """The reader after these bytes, in packets of a size, and what the client gets."""
    stream = open_stream(clock=lambda: 1.0)
    size = size or len(data)
    shown = b"".join(stream.feed(data[at : at + size]) for at in range(0, len(data), size))
    return stream, shown + stream.end()


@pytest.mark.parametrize("size", range(1, 120))
def test_every_cut_gives_the_same(size):
    stream, shown = read(WHOLE, size)
    assert shown == WHOLE
    assert stream.usage == Usage(prompt_tokens=9, completion_tokens=3)
    assert (stream.counted_tokens(), stream.done, stream.error) == (3, True, None)
    assert stream.events == 6


def test_a_packet_with_one_delta_passes_as_it_is():
    stream, _ = read(STREAM)
    piece = delta("more")
    assert stream.feed(piece) is piece
    assert stream.counted_tokens() == 4


def test_content_begins_with_the_first_delta():
    stream = open_stream(clock=lambda: 5.0)
    for piece in (start(input_tokens=9), BLOCK, event("ping")):
        stream.feed(piece)
        assert (stream.content, stream.first_token_at) == (False, 0.0)
    assert stream.alive_at == 5.0
    stream.feed(delta("a"))
    assert (stream.content, stream.first_token_at) == (True, 5.0)


def test_without_its_last_event_it_is_not_finished():
    stream, _ = read(WHOLE.removesuffix(event("message_stop")))
    assert (stream.finished, stream.content) == (False, True)


@pytest.mark.parametrize(
    ("kind", "status"),
    [("overloaded_error", 529), ("rate_limit_error", 429), ("api_error", 500), ("other", 500)],
)
def test_errors(kind, status):
    failed = event("error", error={"type": kind, "message": "no"})
    stream, shown = read(STREAM + failed)
    assert shown == STREAM + failed
    assert (stream.error.status, stream.error.message) == (status, "no")


def test_an_event_without_a_name_is_known_by_its_type():
    data = WHOLE.replace(b"event: message_start\n", b"").replace(b"event: message_stop\n", b"")
    stream, shown = read(data)
    assert shown == data
    assert (stream.done, stream.usage.prompt_tokens) == (True, 9)


COMPACTED = [
    {"type": "compaction", "input_tokens": 20, "output_tokens": 7, "cache_read_input_tokens": 80,
     "cache_creation_input_tokens": 6},
    {"type": "message", "input_tokens": 2, "output_tokens": 4},
]  # fmt: skip
"""The tokens of compactions are in none of the other counts, and are billed."""


@pytest.mark.parametrize(
    ("first", "last", "usage"),
    [
        ({"input_tokens": 9, "output_tokens": 1}, {}, (9, 1, None, None)),
        ({}, {"input_tokens": 9, "output_tokens": 4}, (9, 4, None, None)),
        ({"input_tokens": 9, "output_tokens": 1}, {"output_tokens": 4}, (9, 4, None, None)),
        ({"input_tokens": 0, "output_tokens": 0}, {"input_tokens": 7, "output_tokens": 4},
         (7, 4, None, None)),
        ({"input_tokens": 9}, {"input_tokens": 0, "output_tokens": 4}, (9, 4, None, None)),
        ({"input_tokens": 2, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 5},
         {"output_tokens": 4}, (37, 4, 30, 5)),
        ({"input_tokens": -1}, {"output_tokens": True}, None),
        ({"input_tokens": 2, "output_tokens": 1}, {"output_tokens": 4, "iterations": COMPACTED},
         (2 + 106, 4 + 7, 80, 6)),
        ({"iterations": COMPACTED}, {"iterations": [{"type": "message", "input_tokens": 9}, 1]},
         None),
    ],
)  # fmt: skip
def test_usage_is_the_last_value_over_zero(first, last, usage):
    stream, _ = read(start(**first) + delta("a") + end(**last))
    found = stream.usage
    told = found and (
        found.prompt_tokens,
        found.completion_tokens,
        found.cached_tokens,
        found.cache_write_tokens,
    )
    assert told == usage


@pytest.mark.parametrize(
    ("response", "lenient", "usage"),
    [
        (b'{"usage": {"input_tokens": 3, "output_tokens": 2}}', False, Usage(3, 2)),
        (b'{"x": NaN, "usage": {"input_tokens": 3}}', True, Usage(3)),
        (b'{"x": NaN, "usage": {"input_tokens": 3}}', False, None),
        (b'{"usage": null}', False, None),
        (b'{"input_tokens": 3}', False, None),
    ],
)
def test_usage_of_a_whole_response(response, lenient, usage):
    assert usage_in_response(response, lenient=lenient) == usage


FOREIGN = b'data: {"error":{"message":"why","type":"None","code":"%d"}}\n\n'


@pytest.mark.parametrize("status", [400, 429, 500])
def test_an_error_in_openais_form_becomes_one_that_clients_see(status):
    """LiteLLM sends such. Anthropic's clients skip an event without a name."""
    stream, shown = read(STREAM + FOREIGN % status + delta("d"))
    assert shown.startswith(STREAM + b"event: error\ndata: ")
    form = json.loads(shown.removeprefix(STREAM + b"event: error\ndata: "))
    assert (form["type"], form["error"]["message"]) == ("error", "why")
    assert stream.error is not None
    assert (stream.error.message, stream.error.status, stream.done) == ("why", status, True)
    assert json.loads(stream.error.body) == form


def test_a_named_error_in_openais_form_means_what_its_code_says():
    stream, _ = read(b"event: error\n" + FOREIGN % 429)
    assert stream.error is not None
    assert (stream.error.message, stream.error.status) == ("why", 429)
    assert json.loads(stream.error.body)["type"] == "error"


def test_an_error_without_a_form_gets_one():
    stream, shown = read(b"event: error\ndata: what?\n\n")
    assert shown == b"event: error\ndata: what?\n\n"
    assert stream.error is not None
    assert json.loads(stream.error.body)["error"]["message"] == stream.error.message == "what?"


def test_nothing_follows_the_end():
    stream, shown = read(WHOLE + event("error", error={"type": "api_error", "message": "late"}))
    assert (shown, stream.error, stream.finished) == (WHOLE, None, True)
