"""Answers of every kind: a translated stream says what the whole translated response says, and all
tokens that the backend reports come back."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nexus.dialects import anthropic, openai, responses
from nexus.dialects.base import Usage
from nexus.dialects.translation import TRANSLATIONS
from nexus.dialects.translation.translation import ClientContext
from tests.dialects.translation.chat_streams import calls, piece
from tests.dialects.translation.grammar import check_chat, check_messages, check_responses

CONTEXT = ClientContext(b'"tools":[]')
TEXTS = st.lists(st.text(min_size=1, max_size=4), max_size=3)
ARGUMENTS = st.sampled_from([[], ["{}"], ['{"a":', "1}"], ['{"a":{}}'], ['{"', 'é"', ':"}"}']])
COUNTS = st.lists(st.integers(0, 9), min_size=5, max_size=5)


def both(name: str, whole: dict[str, Any], events: list[tuple[str, dict[str, Any]]], size: int):
    """A whole response and a stream, as a client gets them, and what was read of their usage."""
    one = TRANSLATIONS[name]
    body, data = json.dumps(whole).encode(), b""
    for kind, event in events:
        data += b"event: %b\n" % kind.encode() if kind else b""
        data += b"data: %b\n\n" % json.dumps(event).encode()
    data += b"" if name == "chat-to-messages" else b"data: [DONE]\n\n"
    reader = one.open_stream(clock=lambda: 1.0, hide_usage=False, own_key=None, context=CONTEXT)
    shown = b"".join([reader.feed(data[at : at + size]) for at in range(0, len(data), size)])
    translated = one.response(body, CONTEXT)
    return translated, shown + reader.end(), (one.usage_in_response(body), reader.usage)


@given(
    texts=st.tuples(TEXTS, TEXTS, TEXTS),
    arguments=st.lists(ARGUMENTS, max_size=3),
    counts=COUNTS,
    finish=st.sampled_from(["stop", "length", "tool_calls", "content_filter"]),
    size=st.sampled_from([1, 7, 10**6]),
)
def test_completions(texts, arguments, counts, finish, size):
    uncached, cached, written, said, reasoning = counts
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    usage = {
        "prompt_tokens": uncached + cached + written,
        "completion_tokens": said + reasoning,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    expected = Usage(uncached + cached + written, said + reasoning, cached, reasoning, written)
    fields = dict(zip(("reasoning", "content", "refusal"), texts, strict=True))
    made = [piece(n, "".join(one), f"t{n}", f"c{n}") for n, one in enumerate(arguments)]
    message = {name: "".join(one) for name, one in fields.items()} | calls(*made)
    deltas = [{name: text} for name, one in fields.items() for text in one]
    deltas += [calls(piece(n, "", f"t{n}", f"c{n}")) for n in range(len(arguments))]
    deltas += [calls(piece(n, text)) for n, one in enumerate(arguments) for text in one]
    end = {"index": 0, "finish_reason": finish}
    whole = {"id": "x", "choices": [end | {"message": message}], "usage": usage}
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta} for delta in deltas]
    events = [("", {"id": "x", "choices": [choice]}) for choice in [*choices, end | {"delta": {}}]]
    events.append(("", {"id": "x", "choices": [], "usage": usage}))

    body, shown, found = both("messages-to-chat", whole, events, size)
    grammar, response = check_messages(shown), json.loads(body)
    assert found == (expected, expected)
    assert anthropic.usage_in_response(body) == expected
    assert grammar.usage == response["usage"]
    assert grammar.stop == (response["stop_reason"], response["stop_sequence"])
    streamed = [
        (
            kind,
            said.get("thinking") or said.get("text") or json.loads(said.get("partial_json", "{}")),
        )
        for kind, said in grammar.blocks
    ]
    assert streamed == [
        (block["type"], block.get("thinking") or block.get("text") or block["input"])
        for block in response["content"]
    ]

    body, shown, found = both("responses-to-chat", whole, events, size)
    assert found == (expected, expected)
    assert responses.usage_in_response(body) == expected
    assert check_responses(shown).response == json.loads(body)


@given(
    blocks=st.lists(
        st.tuples(st.sampled_from(["text", "thinking"]), TEXTS) | st.tuples(st.just(""), ARGUMENTS),
        max_size=4,
    ),
    at_once=st.booleans(),
    counts=COUNTS,
    stop=st.sampled_from(["end_turn", "max_tokens", "tool_use", "pause_turn", "refusal", "new"]),
    size=st.sampled_from([1, 7, 10**6]),
)
def test_messages(blocks, at_once, counts, stop, size):
    """`at_once`: what a block says is in its start."""
    uncached, cached, written, said, reasoning = counts
    usage = {
        "input_tokens": uncached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": written,
        "output_tokens": said + reasoning,
        "output_tokens_details": {"thinking_tokens": reasoning},
    }
    expected = Usage(uncached + cached + written, said + reasoning, cached, reasoning, written)
    message = {"id": "x", "model": "m", "content": [], "stop_reason": None}
    events: list[tuple[str, dict[str, Any]]] = [("message_start", {"message": message})]
    content: list[dict[str, Any]] = []
    for n, (kind, pieces) in enumerate(blocks):
        name, delta = kind or "partial_json", f"{kind or 'input_json'}_delta"
        tool = {"type": "tool_use", "id": f"c{n}", "name": "w"}
        start = {"type": kind, kind: ""} if kind else tool | {"input": {}}
        whole = "".join(pieces)
        content.append(start | ({kind: whole} if kind else {"input": json.loads(whole or "{}")}))
        given_now = content[-1] if at_once else start
        events.append(("content_block_start", {"index": n, "content_block": given_now}))
        for text in [] if at_once else pieces:
            said_now = {"type": delta, name: text}
            events.append(("content_block_delta", {"index": n, "delta": said_now}))
        events.append(("content_block_stop", {"index": n}))
    events += [
        ("message_delta", {"delta": {"stop_reason": stop}, "usage": usage}),
        ("message_stop", {}),
    ]
    events = [(kind, {"type": kind} | event) for kind, event in events]
    whole_message = message | {"content": content, "stop_reason": stop, "usage": usage}

    body, shown, found = both("chat-to-messages", whole_message, events, size)
    grammar, response = check_chat(shown), json.loads(body)
    [choice] = response["choices"]
    assert found == (expected, expected)
    assert openai.usage_in_response(body) == expected
    assert (grammar.usage, grammar.finish) == (response["usage"], choice["finish_reason"])
    for name in ("content", "reasoning_content"):
        assert (grammar.said.get(name) or "") == (choice["message"].get(name) or "")
    made = choice["message"].get("tool_calls", [])
    assert [call["id"] for call in grammar.tools] == [call["id"] for call in made]
    assert [json.loads(grammar.said[n]) for n in range(len(made))] == [
        json.loads(call["function"]["arguments"]) for call in made
    ]
