"""Streams of chat completions as Anthropic's clients get them."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.dialects import openai
from nexus.dialects.anthropic.unsigned import signature
from nexus.dialects.base import Usage
from nexus.dialects.translation import TRANSLATIONS
from nexus.dialects.translation.translation import ClientContext
from tests.corpus import RECORDINGS
from tests.dialects.translation.chat_streams import DELTAS, NO_CHAT, calls, chunks, piece
from tests.dialects.translation.grammar import MessageGrammar, check_messages


def translated(packets: Iterable[bytes], own_key: str | None = None):
    """The stream that the client gets, and its reader."""
    stream = TRANSLATIONS["messages-to-chat"].open_stream(
        clock=lambda: 1.0, hide_usage=True, own_key=own_key, context=ClientContext(model="o/m")
    )
    shown = b"".join([stream.feed(packet) for packet in packets])
    return shown + stream.end() + stream.end(), stream


def said(grammar: MessageGrammar) -> list[tuple[str, str]]:
    """Kind and text of each block, signatures apart."""
    return [
        (kind, "".join(text for name, text in texts.items() if name != "signature"))
        for kind, texts in grammar.blocks
    ]


@pytest.mark.parametrize(
    "recording", [one for one in RECORDINGS if one.name not in NO_CHAT], ids=lambda one: one.name
)
def test_every_recording_follows_the_grammar_however_it_is_cut(recording):
    whole, stream = translated([recording.data])
    grammar = check_messages(whole)
    plain = openai.open_stream(clock=lambda: 1.0, hide_usage=False, own_key=None)
    plain.feed(recording.data), plain.end()
    for name in ("events", "usage", "finished", "error", "content", "first_token_at", "done"):
        assert getattr(stream, name) == getattr(plain, name), name
    assert stream.counted_tokens() == plain.counted_tokens()
    if recording.error:
        assert grammar.state == "error"
        assert recording.error in grammar.error["message"]
    else:
        assert grammar.state == ("end" if recording.finished else "block")
    if recording.usage and recording.finished:
        used = grammar.usage
        prompt = used["input_tokens"] + used["cache_read_input_tokens"]
        assert (prompt, used["output_tokens"]) == recording.usage
        assert used["cache_read_input_tokens"] == (recording.details[0] or 0)
    sizes = (*range(1, 20), 64, 1000) if len(recording.data) < 100_000 else (999, 70_000)
    for size in sizes:
        data = recording.data
        shown, _ = translated(data[at : at + size] for at in range(0, len(data), size))
        again = check_messages(shown)
        assert (said(again), again.state) == (said(grammar), grammar.state), size


@pytest.mark.parametrize(
    "recording", [one for one in RECORDINGS if len(one.data) < 20_000], ids=lambda one: one.name
)
def test_a_stream_cut_anywhere_follows_the_grammar(recording):
    for at in range(0, len(recording.data), 7):
        shown, stream = translated([recording.data[:at]])
        grammar = check_messages(shown)
        assert (grammar.state == "end") == (stream.finished and stream.error is None)


def test_blocks_come_in_the_order_in_which_the_backend_starts_them():
    for reasoning in ("reasoning", "reasoning_content"):
        shown, _ = translated(
            [chunks({reasoning: "Hm"}, {"content": "So"}, {"content": "."}, {reasoning: "Ah"})]
        )
        grammar = check_messages(shown)
        assert said(grammar) == [("thinking", "Hm"), ("text", "So."), ("thinking", "Ah")]
        wanted_back = reasoning == "reasoning_content"
        assert grammar.blocks[0][1]["signature"] == (
            signature("o/m") if wanted_back else signature()
        )
        assert grammar.stop == ("end_turn", None)


def test_calls_that_interleave_come_one_after_the_other():
    shown, _ = translated(
        [
            chunks(
                {"content": "I look."},
                calls(piece(0, '{"a":', "one", "c1")),
                calls(piece(1, "", "two", "c2")),
                calls(piece(0, " 1.50"), piece(1, '{"b":{}')),
                calls(piece(1, "}"), piece(2, "", "three", "c3"), piece(0, "}")),
                finish="tool_calls",
            )
        ]
    )
    grammar = check_messages(shown)
    assert said(grammar) == [
        ("text", "I look."),
        ("tool_use", '{"a": 1.50}'),
        ("tool_use", '{"b":{}}'),
        ("tool_use", ""),
    ]
    assert [(tool["id"], tool["name"]) for tool in grammar.tools] == [
        ("c1", "one"),
        ("c2", "two"),
        ("c3", "three"),
    ]
    assert grammar.stop == ("tool_use", None)


def test_a_call_goes_on_as_soon_as_the_one_before_is_complete():
    stream = TRANSLATIONS["messages-to-chat"].open_stream(
        clock=lambda: 1.0, hide_usage=True, own_key=None
    )
    deltas = [calls(piece(0, "{}", "one", "c1")), calls(piece(1, '{"x', "two", "c2"))]
    shown = [stream.feed(chunks(delta).split(b"\n\n")[0] + b"\n\n") for delta in deltas]
    assert b'"one"' in shown[0]
    assert b'"two"' in shown[1]
    assert b'"partial_json":"{\\"x"' in shown[1]


def test_calls_with_one_index_and_calls_without_ids_are_told_apart():
    shown, _ = translated(
        [chunks(calls(piece(0, "{}", "one", "c1")), calls(piece(0, "{}", "two", "c2")))]
    )
    grammar = check_messages(shown)
    assert [tool["name"] for tool in grammar.tools] == ["one", "two"]
    assert grammar.stop == ("tool_use", None)  # though the backend says `stop`
    shown, _ = translated([chunks(calls(piece(0, "{}", "one"), piece(1, "{}", "two")))])
    assert len({tool["id"] for tool in check_messages(shown).tools}) == 2


@pytest.mark.parametrize(
    ("finish", "last", "stop"),
    [
        ("stop", {}, ("end_turn", None)),
        ("stop", {"stop_reason": "END"}, ("stop_sequence", "END")),
        ("stop", {"stop_reason": 128001}, ("end_turn", None)),
        ("length", {}, ("max_tokens", None)),
        ("content_filter", {}, ("refusal", None)),
        ("tool_calls", {}, ("tool_use", None)),
        ("eos", {}, ("end_turn", None)),
    ],
)
def test_the_reason_of_the_end(finish, last, stop):
    shown, _ = translated([chunks({"content": "x"}, finish=finish, **last)])
    assert check_messages(shown).stop == stop


def test_a_refusal_is_text_with_its_own_reason():
    grammar = check_messages(translated([chunks({"refusal": "I can't."})])[0])
    assert (said(grammar), grammar.stop) == ([("text", "I can't.")], ("refusal", None))


def test_an_error_ends_the_stream_without_the_gateways_key():
    event = b'data: {"error": {"message": "bad key sk-own", "code": 429}}\n\n'
    shown, stream = translated(
        [chunks({"content": "x"}).split(b"\n\n")[0] + b"\n\n", event], "sk-own"
    )
    grammar = check_messages(shown)
    assert (grammar.state, grammar.error["type"]) == ("error", "rate_limit_error")
    assert "sk-own" not in grammar.error["message"]
    assert stream.error.status == 429


def test_signs_of_life_are_pings():
    shown, stream = translated([b": processing\n\n"])
    assert shown == b'event: ping\ndata: {"type": "ping"}\n\n'
    assert (stream.alive_at, stream.content) == (1.0, False)


@given(deltas=DELTAS, size=st.integers(1, 200))
def test_nothing_is_lost_and_every_stream_follows_the_grammar(deltas, size):
    data = chunks(*deltas)
    shown, stream = translated(data[at : at + size] for at in range(0, len(data), size))
    grammar = check_messages(shown)
    assert (grammar.state, stream.finished) == ("end", True)
    for field, kind in (("content", "text"), ("reasoning", "thinking")):
        texts = "".join(text for block, text in said(grammar) if block == kind)
        assert texts == "".join(delta.get(field, "") for delta in deltas)
    given_calls: dict[int, str] = {}
    for delta in deltas:
        for one in delta.get("tool_calls", ()):
            given_calls[one["index"]] = (
                given_calls.get(one["index"], "") + one["function"]["arguments"]
            )
    shown_calls = [text for kind, text in said(grammar) if kind == "tool_use"]
    assert [tool["id"] for tool in grammar.tools] == [f"c{index}" for index in given_calls]
    for complete, text in zip(given_calls.values(), shown_calls, strict=True):
        assert complete == text or (complete.startswith(text) and json.loads(text) is not None)


def test_parts_of_the_content_are_reasoning_and_text():
    """Mistral's models reason so."""
    hm = {"type": "thinking", "thinking": [{"type": "text", "text": "H"}, {"type": "x"}]}
    deltas = [{"content": [hm]}, {"content": [{"type": "text", "text": "So"}]}, {"content": "."}]
    shown, _ = translated([chunks(*deltas)])
    assert said(check_messages(shown)) == [("thinking", "H"), ("text", "So.")]


def test_arguments_may_be_the_object_itself():
    deltas = [calls(piece(0, given, name, name)) for name, given in (("f", {"a": 1}), ("g", {}))]
    shown, _ = translated([chunks(*deltas)])
    assert said(check_messages(shown)) == [("tool_use", '{"a":1}'), ("tool_use", "")]


def test_an_empty_finish_reason_is_none():
    data = chunks({"content": "x"}, finish="length")
    late = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":""}]}\n\ndata: [DONE]'
    shown, _ = translated([data.replace(b"data: [DONE]", late)])
    assert check_messages(shown).stop == ("max_tokens", None)


def test_usage_counts_cached_tokens_apart():
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 3},
    }
    event = b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode()
    data = chunks({"content": "x"}).replace(b"data: [DONE]", event + b"data: [DONE]")
    shown, stream = translated([data])
    assert check_messages(shown).usage == {
        "input_tokens": 7,
        "cache_creation_input_tokens": 3,
        "cache_read_input_tokens": 20,
        "output_tokens": 4,
    }
    assert stream.usage == Usage(30, 4, 20, cache_write_tokens=3)
