"""Streams of chat completions as clients of the Responses API get them."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from nexus.dialects import openai
from nexus.dialects.base import Usage
from nexus.dialects.translation import TRANSLATIONS
from nexus.dialects.translation.translation import ClientContext
from tests.corpus import RECORDINGS
from tests.dialects.translation.chat_streams import DELTAS, NO_CHAT, calls, chunks, piece
from tests.dialects.translation.grammar import ResponsesGrammar, check_responses

CONTEXT = ClientContext(
    b'"parallel_tool_calls":true,"tool_choice":"auto","tools":[]', {"ns__two": ("ns", "two")}
)
EVENT = TypeAdapter(ResponseStreamEvent)
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 20},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def translated(packets: Iterable[bytes], own_key: str | None = None):
    """The stream that the client gets, and its reader."""
    stream = TRANSLATIONS["responses-to-chat"].open_stream(
        clock=lambda: 1.0, hide_usage=True, own_key=own_key, context=CONTEXT
    )
    shown = b"".join([stream.feed(packet) for packet in packets])
    return shown + stream.end() + stream.end(), stream


def said(grammar: ResponsesGrammar) -> list[tuple[str, str]]:
    """Kind and text of each item."""
    found = []
    for item in grammar.items:
        if item["type"] == "function_call":
            found.append((item["name"], item["arguments"]))
        else:
            [part] = item["content"]
            found.append((part["type"], part.get("text") or part.get("refusal")))
    return found


def by_sdk(shown: bytes) -> Response | None:
    """The response that OpenAI's package makes of the events, each of which must be of its type."""
    state: Any = ResponseStreamState(input_tools=[], text_format=omit)
    for event in shown.split(b"\n\n")[:-1]:
        parsed = EVENT.validate_json(event.partition(b"data: ")[2], strict=True)
        state.handle_event(parsed)
    return state._completed_response


@pytest.mark.parametrize(
    "recording", [one for one in RECORDINGS if one.name not in NO_CHAT], ids=lambda one: one.name
)
def test_every_recording_follows_the_grammar_however_it_is_cut(recording):
    whole, stream = translated([recording.data])
    grammar = check_responses(whole)
    plain = openai.open_stream(clock=lambda: 1.0, hide_usage=False, own_key=None)
    plain.feed(recording.data), plain.end()
    for name in ("events", "usage", "finished", "error", "content", "first_token_at", "done"):
        assert getattr(stream, name) == getattr(plain, name), name
    assert stream.counted_tokens() == plain.counted_tokens()
    assert stream.stored_ids == ()
    if recording.error:
        assert grammar.state == "error"
        assert recording.error in grammar.error["message"]
    else:
        assert grammar.state == ("end" if recording.finished else "part")
    assert stream.next_number == grammar.number - (grammar.state == "error")
    if recording.usage and recording.finished:
        used = grammar.response["usage"]
        assert (used["input_tokens"], used["output_tokens"]) == recording.usage
        assert used["input_tokens_details"]["cached_tokens"] == (recording.details[0] or 0)
        assert used["output_tokens_details"]["reasoning_tokens"] == (recording.details[1] or 0)
    sizes = (1, 2, 3, 7, 19, 64, 1000) if len(recording.data) < 100_000 else (999, 70_000)
    for size in sizes:
        data = recording.data
        shown, _ = translated(data[at : at + size] for at in range(0, len(data), size))
        again = check_responses(shown)
        assert (said(again), again.state) == (said(grammar), grammar.state), size


@pytest.mark.parametrize(
    "recording", [one for one in RECORDINGS if len(one.data) < 20_000], ids=lambda one: one.name
)
def test_a_stream_cut_anywhere_follows_the_grammar(recording):
    for at in range(0, len(recording.data), 7):
        shown, stream = translated([recording.data[:at]])
        grammar = check_responses(shown)
        assert (grammar.state == "end") == (stream.finished and stream.error is None)


def test_items_come_one_after_the_other_as_openais_package_reads_them():
    data = chunks(
        {"role": "assistant", "content": ""},
        {"reasoning": "Hm"},
        {"content": "I look."},
        calls(piece(0, '{"a":', "one", "c1")),
        calls(piece(1, "", "ns__two", "c2")),
        calls(piece(0, " 1.50}")),
        calls(piece(2, "{}", "three")),
        finish="tool_calls",
    )
    usage = b"data: %b\n\n" % json.dumps({"choices": [], "usage": USAGE}).encode()
    shown, stream = translated([data.replace(b"data: [DONE]", usage + b"data: [DONE]")])
    grammar = check_responses(shown)
    assert said(grammar) == [
        ("reasoning_text", "Hm"),
        ("output_text", "I look."),
        ("one", '{"a": 1.50}'),
        ("two", "{}"),
        ("three", "{}"),
    ]
    response = by_sdk(shown)
    assert response.status == "completed"
    assert response.output_text == "I look."
    one, two, three = response.output[2:]
    assert (one.call_id, one.namespace, two.call_id, two.namespace) == ("c1", None, "c2", "ns")
    assert three.call_id
    assert len({item.id for item in response.output}) == 5
    assert stream.usage == Usage(30, 4, 20, 3)
    used = response.usage
    assert (used.input_tokens, used.output_tokens, used.total_tokens) == (30, 4, 34)
    assert used.input_tokens_details.cached_tokens == 20
    assert used.output_tokens_details.reasoning_tokens == 3


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        ("eos", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_the_reason_of_the_end(finish, status, reason):
    shown, _ = translated([chunks({"content": "x"}, finish=finish)])
    assert (by_sdk(shown) is None) == (status == "incomplete")  # the package knows no other end
    response = Response.model_validate(check_responses(shown).response, strict=True)
    found = response.incomplete_details and response.incomplete_details.reason
    assert (response.status, found) == (status, reason)
    assert response.output[0].status == status
    assert response.usage is None  # none is reported


def test_a_refusal_and_nothing_at_all():
    response = by_sdk(translated([chunks({"content": "I"}, {"refusal": "I can't."})])[0])
    assert [item.content[0].type for item in response.output] == ["output_text", "refusal"]
    assert by_sdk(translated([chunks()])[0]).output == []


def test_an_error_ends_the_stream_without_the_gateways_key():
    event = b'data: {"error": {"message": "bad key sk-own", "code": 429}}\n\n'
    shown, stream = translated(
        [chunks({"content": "x"}).split(b"\n\n")[0] + b"\n\n", event], "sk-own"
    )
    grammar = check_responses(shown)
    assert (grammar.state, stream.error.status) == ("error", 429)
    assert "sk-own" not in grammar.error["message"]


@given(deltas=DELTAS, size=st.integers(1, 200))
def test_nothing_is_lost_and_every_stream_follows_the_grammar(deltas, size):
    data = chunks(*deltas)
    shown, stream = translated(data[at : at + size] for at in range(0, len(data), size))
    grammar = check_responses(shown)
    assert (grammar.state, stream.finished) == ("end", True)
    for field, kind in (("content", "output_text"), ("reasoning", "reasoning_text")):
        texts = "".join(text for block, text in said(grammar) if block == kind)
        assert texts == "".join(delta.get(field, "") for delta in deltas)
    named = dict.fromkeys(one["id"] for delta in deltas for one in delta.get("tool_calls", ()))
    items = [item for item in grammar.items if item["type"] == "function_call"]
    assert [item["call_id"] for item in items] == list(named)
