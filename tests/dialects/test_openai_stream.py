"""What a stream says of itself, over a corpus of recordings, cut at every border."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.dialects.openai.stream import OpenAIStream
from nexus.errors import Blame
from nexus.providers.errors import classify, fault_within_stream
from tests.corpus import RECORDINGS, Recording

SMALL = [recording for recording in RECORDINGS if len(recording.data) < 10_000]
EACH = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)


def relay(recording: Recording, parts, *, hide_usage: bool) -> tuple[bytes, OpenAIStream]:
    ticks = iter(range(1, 10_000_000))
    stream = OpenAIStream(clock=lambda: float(next(ticks)), hide_usage=hide_usage)
    shown = [stream.feed(part) for part in parts]
    shown.append(stream.end())
    return b"".join(shown), stream


def check(recording: Recording, parts) -> None:
    for hide_usage, expected in ((False, recording.data), (True, recording.shown)):
        shown, stream = relay(recording, parts, hide_usage=hide_usage)
        assert shown == expected
        told = (
            (stream.usage.prompt_tokens, stream.usage.completion_tokens) if stream.usage else None
        )
        assert told == recording.usage
        if stream.usage:
            assert (stream.usage.cached_tokens, stream.usage.reasoning_tokens) == recording.details
        assert stream.counted_tokens() == recording.counted
        assert stream.events == recording.events
        assert stream.finished is recording.finished
        assert (stream.error and stream.error.message) == recording.error
        assert stream.content


@EACH
def test_whole(recording):
    check(recording, [recording.data])


@pytest.mark.parametrize("recording", SMALL, ids=lambda recording: recording.name)
def test_every_size_of_packets(recording):
    data = recording.data
    for size in [*range(1, 80), *range(80, len(data), 37)]:
        check(recording, [data[start : start + size] for start in range(0, len(data), size)])


@given(st.sampled_from(SMALL), st.lists(st.integers(0, 10_000), max_size=30))
def test_random_packets(recording, cuts):
    data = recording.data
    at = sorted({cut % len(data) for cut in cuts} | {0, len(data)})
    check(recording, [data[start:end] for start, end in pairwise(at)])


@pytest.mark.parametrize("size", [1, 1000, 65_536])
def test_a_large_event_is_not_held_until_it_is_whole(size):
    recording = next(found for found in RECORDINGS if found.name == "a large event")
    data = recording.data
    check(recording, [data[start : start + size] for start in range(0, len(data), size)])
    stream = OpenAIStream(clock=lambda: 1.0, hide_usage=True)
    shown = sum(len(stream.feed(data[start : start + 1000])) for start in range(0, 150_000, 1000))
    assert shown > 140_000


@pytest.mark.parametrize("hide_usage", [False, True])
def test_an_event_goes_on_when_it_is_whole(hide_usage):
    """What breaks off within one leaves nothing at the client that the error after it would be
    glued to."""
    stream = OpenAIStream(clock=lambda: 1.0, hide_usage=hide_usage)
    whole = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    assert stream.feed(whole + whole[:30]) == whole
    assert stream.feed(whole[30:] + b"data: {") == whole
    assert not stream.within_event
    assert stream.feed(b"x" * 100_000) == b"data: {" + b"x" * 100_000
    assert stream.within_event


@pytest.mark.parametrize("hide_usage", [False, True])
def test_an_endless_event_is_not_kept(hide_usage):
    """It goes on as it came, and what is kept of it is bounded."""
    stream = OpenAIStream(clock=lambda: 1.0, hide_usage=hide_usage)
    piece = b"x" * 1_000_000
    sent = shown = 0
    for data in (b"data: ", *[piece] * 40, b"\n\n"):
        sent += len(data)
        shown += len(stream.feed(data))
        assert len(stream._reader.pending) < 18_000_000
    assert shown == sent
    stream.feed(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
    assert stream.first_token_at == 1.0


def test_times():
    now = [0.0]
    stream = OpenAIStream(clock=lambda: now[0], hide_usage=False)

    def say(at: float, text: str) -> None:
        now[0] = at
        stream.feed(f"data: {text}\n\n".encode())

    say(1.0, '{"choices":[{"delta":{"role":"assistant"}}]}')
    assert not stream.content
    assert stream.first_token_at == 0
    say(2.5, '{"choices":[{"delta":{"content":"x"}}]}')
    assert stream.first_token_at == 2.5
    say(3.0, '{"choices":[{"delta":{"content":"x"}}]}')
    say(5.0, '{"choices":[{"delta":{"content":"x"}}]}')
    say(5.5, "[DONE]")
    assert (stream.longest_gap_s, stream.last_at, stream.first_token_at) == (2.0, 5.5, 2.5)


@pytest.mark.parametrize(
    ("text", "content", "token"),
    [
        ('{"choices":[{"delta":{"role":"assistant","content":""}}]}', False, False),
        ('{"choices":[]}', False, False),
        ('{"choices":[{"delta":{},"finish_reason":"stop"}]}', True, False),
        ("[DONE]", True, False),
        ("", False, False),
        (" ", False, False),
        ('{"choices":[{"delta":{"reasoning":"hm"}}]}', True, True),
        ('{"choices":[{"delta":{"audio":{"id":"a"}}}]}', True, True),
        *[
            (
                json.dumps(
                    {"choices": [{"delta": {"role": "assistant", "content": "", key: value}}]}
                ),
                True,
                True,
            )
            for key, value in [
                ("reasoning_content", "h"),
                ("reasoning_text", "h"),
                ("thinking", "h"),
                ("thought", "h"),
                ("thoughts", ["h"]),
                ("reasoning_details", [{"type": "reasoning.text", "text": "h"}]),
                ("thinking_blocks", [{"thinking": "h"}]),
                ("tool_calls", [{"index": 0}]),
                ("function_call", {"name": "f"}),
                ("refusal", "no"),
                ("images", [{"type": "image_url"}]),
                ("annotations", [{"type": "url_citation"}]),
            ]
        ],
        (
            '{"choices":[{"delta":{"role":"assistant","content":"",'
            '"reasoning_content":"","tool_calls":[]}}]}',
            False,
            False,
        ),
        (
            '{"choices":[{"delta":{"role":"assistant","provider_specific_fields":{"a":1}}}]}',
            False,
            False,
        ),
        ('{"choices":[{"message":{"role":"assistant","content":"x"}}]}', True, True),
        (
            '{"choices":[{"delta":{"role":"assistant"}}],"prompt_progress":{"total":9,'
            '"processed":4}}',
            True,
            False,
        ),
        ('{"type":"ping"}', False, False),
        ('{"type":"response.created"}', True, True),
        ("not json", True, True),
    ],
)
def test_what_is_worth_showing(text, content, token):
    stream = OpenAIStream(clock=lambda: 1.0, hide_usage=True)
    stream.feed(f"data: {text}\n\n".encode())
    assert (stream.content, bool(stream.first_token_at)) == (content, token)


@pytest.mark.parametrize(
    "error", ['{"error":{"message":"no"}}', '{"error":"no"}', '{"object":"error","message":"no"}']
)
def test_error_before_content(error):
    stream = OpenAIStream(clock=lambda: 1.0, hide_usage=True)
    stream.feed(f"data: {error}\n\n".encode())
    assert (stream.error.message, stream.content) == ("no", False)


@pytest.mark.parametrize(
    ("error", "blame"),
    [
        ('{"error":{"message":"no","code":400,"type":"BadRequestError"}}', Blame.CLIENT),
        ('{"object":"error","message":"no","code":422}', Blame.CLIENT),
        (
            '{"error":{"message":"no","code":"context_length_exceeded",'
            '"type":"invalid_request_error"}}',
            Blame.CLIENT,
        ),
        ('{"error":{"message":"no","code":"400"}}', Blame.CLIENT),
        ('{"error":{"message":"no","code":500,"type":"invalid_request_error"}}', Blame.CLIENT),
        ('{"error":{"message":"no","code":429}}', Blame.BUSY),
        ('{"type":"error","error":{"message":"no","type":"overloaded_error"}}', Blame.BUSY),
        ('{"error":{"message":"no","code":401}}', Blame.GATEWAY),
        ('{"error":{"message":"no","code":"rate_limit_exceeded","type":"tokens"}}', Blame.BUSY),
        ('{"error":{"message":"no","code":{}}}', Blame.BACKEND),
        ('{"error":{"message":"no","code":"٤٠٠"}}', Blame.BACKEND),
        ('{"error":"no"}', Blame.BACKEND),
    ],
)
def test_whose_error_it_is(error, blame):
    stream = OpenAIStream(clock=lambda: 1.0, hide_usage=True)
    stream.feed(f"data: {error}\n\n".encode())
    assert stream.error.message == "no"
    assert classify(stream.error.status, stream.error.body).blame is blame
    after_content = fault_within_stream(stream.error.status)
    assert after_content.blame is (Blame.BUSY if blame is Blame.BUSY else Blame.BACKEND)
    assert fault_within_stream(429, own_key=False).blame is Blame.CLIENT
    if blame is Blame.CLIENT:
        assert (
            fault_within_stream(stream.error.status, stream.error.body, content=False).code
            == "stream_refused"
        ), "only pings went before"


def event(index: int, *, text: str | None = None, reason: str | None = None) -> bytes:
    delta = {"content": text} if text else {}
    return (
        b"data: %b\n\n"
        % json.dumps(
            {"choices": [{"index": index, "delta": delta, "finish_reason": reason}]}
        ).encode()
    )


@pytest.mark.parametrize(("ended", "finished"), [(0, False), (1, False), (4, False), (5, True)])
def test_several_choices_have_each_its_end(ended, finished):
    """A backend that sends no `[DONE]`: the stream is whole only where every choice of it is."""
    stream = OpenAIStream(clock=lambda: 1.0, hide_usage=False)
    for index in range(5):
        stream.feed(event(index, text="a"))
    for index in range(ended):
        stream.feed(event(index, reason="stop"))
    stream.end()
    assert stream.finished is finished
    assert stream.counted_tokens() == 5


@pytest.mark.parametrize(
    ("event", "alive"),
    [
        (b":\n\n", True),
        (b": OPENROUTER PROCESSING\n\n", True),
        (b"\n\n", True),
        (b'event: ping\ndata: {"type": "ping"}\n\n', True),
        (b"event: keepalive\ndata: {}\n\n", True),
        (b'data: {"type":"ping"}\n\n', True),
        (b'data: {"choices":[],"prompt_filter_results":[]}\n\n', True),
        (b"data:\n\n", True),
        (b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n', False),
        (b": half of one", False),
    ],
)
def test_signs_of_life(event, alive):
    """They are no content: until that comes, another backend can be tried."""
    stream = OpenAIStream(clock=lambda: 3.0, hide_usage=True)
    stream.feed(event)
    assert stream.alive_at == (3.0 if alive else 0)
    assert (stream.content, stream.first_token_at) == (False, 0)


def test_what_is_kept_of_long_events_is_short():
    """Sixteen events of some megabytes each would be the memory of a small host."""
    stream = OpenAIStream(clock=lambda: 1.0, hide_usage=True)
    for number in range(20):
        long = b'data: {"choices":[{"index":%d,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
        data = long % (number % 2, b"x" * 300_000)
        assert stream.feed(data[:100]) + stream.feed(data[100:]) == data
    stream.feed(event(0, text="y" * 5000, reason="stop"))
    assert not stream.finished
    assert sum(len(repr(kept)) for kept in stream._last) < 10_000
    stream.feed(event(1, reason="stop"))
    assert stream.finished
    assert (stream.events, stream.counted_tokens()) == (22, 21)


@pytest.mark.parametrize(
    ("usage_event", "shown"),
    [
        (
            '{"object":"text_completion","choices":[],"usage":{"prompt_tokens":1,'
            '"completion_tokens":2},"citations":["a"]}',
            '{"object":"text_completion","choices":[{"index":0,"text":"","logprobs":null,'
            '"finish_reason":null}],"citations":["a"]}',
        ),
        (
            '{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2},'
            '"system_fingerprint":"f","x":null,"y":[],"z":{}}',
            None,
        ),
        (
            '{"choices":[{"index":0,"delta":{},"finish_reason":null}],'
            '"usage":{"prompt_tokens":1,"completion_tokens":2}}',
            None,
        ),
        (
            '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
            '"usage":{"prompt_tokens":1,"completion_tokens":2}}',
            ...,
        ),
        (
            '{"choices":[{"index":0,"delta":{"role":"assistant"}}],'
            '"usage":{"prompt_tokens":1,"completion_tokens":2}}',
            ...,
        ),
        ('{"usage":{"prompt_tokens":1,"completion_tokens":2}}', None),
        ('{"choices":null,"usage":{"prompt_tokens":1,"completion_tokens":2}}', None),
        (
            '{"choices":[{"index":0,"delta":{},"finish_reason":"stop",'
            '"usage":{"prompt_tokens":1,"completion_tokens":2}}]}',
            ...,
        ),
    ],
)
def test_what_stands_beside_the_usage(usage_event, shown):
    """It is not lost for a client that did not ask for the usage; what the event before had,
    too, is not sent again."""
    stream = OpenAIStream(clock=lambda: 1.0, hide_usage=True)
    stream.feed(
        b'data: {"system_fingerprint":"f","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    )
    got = stream.feed(f"data: {usage_event}\n\n".encode())
    assert got == (
        b"" if shown is None else f"data: {usage_event if shown is ... else shown}\n\n".encode()
    )
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (1, 2)


def test_a_usage_of_zero_replaces_no_other():
    stream = OpenAIStream(clock=lambda: 1.0)
    for prompt, completion in ((0, 0), (9, 1), (9, 2), (0, 0)):
        stream.feed(
            b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}\n\n'
            % (prompt, completion)
        )
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (9, 2)


WORD = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'


@pytest.mark.parametrize(
    "done", [b"data: [DONE]\n\n", b"data: [DONE] \r\n\r\n", b"data:[DONE]\r\r"]
)
@pytest.mark.parametrize(
    "after", [b"", b"data: [DONE]\n\n", WORD, b'data: {"error":{"message":"late"}}\n\n', b"data: {"]
)
def test_nothing_follows_done(done, after):
    """Not in its packet either; and clients take it by its start."""
    stream = OpenAIStream(clock=lambda: 1.0, hide_usage=True)
    assert stream.feed(WORD) == WORD
    assert stream.feed(WORD + done + after) + stream.end() == WORD + done
    assert (stream.finished, stream.error, stream.counted_tokens()) == (True, None, 2)
