"""Streams of the Responses API: what an event means, however the stream is cut into packets."""

import json

import pytest

from nexus.dialects.base import Usage
from nexus.dialects.responses import error_event, error_in_response, response_events, stored_ids
from nexus.dialects.responses.stream import open_stream
from nexus.dialects.responses.usage import usage_in_response

USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 1},
}


def event(kind: str, **fields) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def start(**fields) -> bytes:
    response = {"id": "resp_1", "status": "in_progress", "usage": None, **fields}
    return event("response.created", response=response, sequence_number=0)


def delta(text: str) -> bytes:
    return event("response.output_text.delta", delta=text)


def end(status: str = "completed", **fields) -> bytes:
    response = {"id": "resp_1", "status": status, "usage": USAGE, **fields}
    return event(f"response.{status}", response=response)


ITEM = event("response.output_item.added", item={"type": "message"})
STREAM = start() + ITEM + delta("a") + delta("b\r") + delta("c")
WHOLE = STREAM + event("response.output_text.done", text="ab\rc") + end()


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
    assert stream.usage == Usage(9, 3, 4, 1)
    assert (stream.counted_tokens(), stream.done, stream.error) == (3, True, None)
    assert (stream.events, stream.next_number, stream.stored_ids) == (7, 7, ("resp_1",))


def test_a_packet_with_one_delta_passes_as_it_is():
    stream, _ = read(STREAM)
    for kind in ("response.output_text", "response.function_call_arguments", "response.reasoning"):
        piece = event(f"{kind}.delta", delta="x")
        assert stream.feed(piece) is piece
    assert stream.counted_tokens() == 6
    stream.feed(event("response.output_text.done", text="x"))
    assert (stream.counted_tokens(), stream.events) == (6, 9)


def test_content_begins_with_the_first_delta():
    stream = open_stream(clock=lambda: 5.0)
    stream.feed(start())
    assert (stream.content, stream.first_token_at, stream.alive_at) == (False, 0.0, 0.0)
    stream.feed(ITEM)
    assert (stream.content, stream.alive_at) == (False, 5.0)
    stream.feed(delta("a"))
    assert (stream.content, stream.first_token_at) == (True, 5.0)


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_its_ends(status):
    stream, _ = read(start() + end(status))
    assert (stream.finished, stream.content, stream.usage.completion_tokens) == (True, True, 3)


def test_without_its_last_event_it_is_not_finished():
    stream, _ = read(STREAM)
    assert (stream.finished, stream.content) == (False, True)


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (end("failed", error={"code": "server_error", "message": "no"}), 500, "no"),
        (end("failed", error={"code": "rate_limit_exceeded", "message": "no"}), 429, "no"),
        (end("failed", error=None), 500, "no message"),
        (event("error", code="server_is_overloaded", message="no"), 503, "no"),
        (event("error", error={"type": "invalid_request_error", "message": "no"}), 400, "no"),
        (b"event: error\ndata: what?\n\n", 500, "no message"),
    ],
)
def test_errors(failure, status, message):
    stream, shown = read(STREAM + failure)
    assert shown == STREAM + failure
    assert (stream.error.status, stream.error.message) == (status, message)
    assert json.loads(stream.error.body)["error"]["message"] == message
    assert (stream.done, stream.finished) == (True, False)


def test_an_event_without_a_name_is_known_by_its_type():
    data = b"\n".join(line for line in WHOLE.split(b"\n") if not line.startswith(b"event:"))
    stream, shown = read(data)
    assert shown == data
    assert (stream.done, stream.counted_tokens(), stream.usage.prompt_tokens) == (True, 3, 9)


def test_pings_and_the_mark_of_other_streams_are_no_events():
    stream, shown = read(event("ping") + STREAM + b"data: [DONE]\n\n")
    assert shown == event("ping") + STREAM + b"data: [DONE]\n\n"
    assert (stream.events, stream.finished) == (5, False)


@pytest.mark.parametrize("odd", ['"usage": 7', '"usage": null, "conversation": "conv_1"'])
def test_a_last_event_with_fields_of_another_type_is_the_end(odd):
    end = b'event: response.completed\ndata: {"response": {"id": "resp_1", %b}}\n\n' % odd.encode()
    stream, _ = read(end)
    assert (stream.done, stream.finished, stream.usage) == (True, True, None)


def test_numbers_go_on_from_the_first_event():
    stream, _ = read(STREAM.replace(b'"sequence_number": 0', b'"sequence_number": 40'))
    assert stream.next_number == 45
    sent = json.loads(error_event("no", status=502, code="c", number=45).split(b"data: ")[1])
    assert (sent["type"], sent["sequence_number"]) == ("error", 45)
    assert (sent["code"], sent["message"], sent["error"]["code"]) == ("c", "no", "c")


@pytest.mark.parametrize(
    ("response", "lenient", "usage"),
    [
        (json.dumps({"usage": USAGE}).encode(), False, Usage(9, 3, 4, 1)),
        (b'{"x": NaN, "usage": {"input_tokens": 3}}', True, Usage(3)),
        (b'{"x": NaN, "usage": {"input_tokens": 3}}', False, None),
        (b'{"usage": null}', False, None),
        (b'{"usage": {"input_tokens": -3}}', False, None),
        (b'{"usage": {"input_tokens": 3.0, "input_tokens_details": []}}', False, Usage(3)),
        (
            b'{"usage": {"input_tokens": 3, "input_tokens_details": '
            b'{"cached_tokens": 2, "cache_write_tokens": 7}}}',
            False,
            Usage(3, cached_tokens=2, cache_write_tokens=1),
        ),
    ],
)
def test_usage_of_a_whole_response(response, lenient, usage):
    assert usage_in_response(response, lenient=lenient) == usage


@pytest.mark.parametrize(
    ("response", "ids"),
    [
        (b'{"id": "resp_1", "conversation": {"id": "conv_1"}}', ("resp_1", "conv_1")),
        (b'{"id": "resp_1", "conversation": null}', ("resp_1",)),
        (b'{"id": 7}', ()),
        (b"no JSON", ()),
    ],
)
def test_ids_of_a_whole_response(response, ids):
    assert stored_ids(response) == ids


def test_a_failed_response_is_a_response():
    failed = b'{"object": "response", "status": "failed", "error": {"code": "server_error"}}'
    assert error_in_response(failed) is None
    assert error_in_response(b'{"error": {"message": "no"}}').message == "no"


def test_a_whole_response_as_a_stream():
    stream, _ = read(response_events(b'{\n"id": "resp_1",\n"usage": null}', 200))
    assert (stream.finished, stream.stored_ids) == (True, ("resp_1",))
    for body, message in (
        (b'{"error": {"message": "no", "code": "c"}}', "no"),
        (b"words", "words"),
    ):
        stream, _ = read(response_events(body, 500))
        assert stream.error.message == message


@pytest.mark.parametrize("status", [400, 429, 500])
def test_an_error_in_the_form_of_other_streams_becomes_one_of_this(status):
    foreign = b'data: {"error":{"message":"why","type":"None","code":%d}}\n\n' % status
    stream, shown = read(STREAM + foreign + delta("d"))
    number = stream.next_number - 1
    assert shown == STREAM + error_event("why", status=status, code=None, number=number)
    assert stream.error is not None
    assert (stream.error.message, stream.error.status, stream.done) == ("why", status, True)


def test_nothing_follows_the_end():
    stream, shown = read(WHOLE + event("error", code="x", message="late"))
    assert (shown, stream.error, stream.finished) == (WHOLE, None, True)
