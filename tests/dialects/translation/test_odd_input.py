"""Whatever clients and backends send: a request is translated or refused, and the client's stream
follows its grammar."""

import contextlib
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.dialects.translation import TRANSLATIONS
from nexus.dialects.translation.rules import BadResponse, Untranslatable
from nexus.dialects.translation.translation import ClientContext, Receiver
from tests.dialects.translation.grammar import check_chat, check_messages, check_responses

ODD = st.sampled_from(
    [None, True, 1, -1.5, "x", "", [], {}, [1], {"type": "x"}, [[]], {"a": {}}, "\ud800"]
)
CONTEXT = ClientContext(b'"tools":[]')
FUNCTION = {"type": "function", "name": "w", "parameters": {}, "strict": False}
CHAT_FUNCTION = {"type": "function", "function": {"name": "w", "parameters": {}}}
FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,A"}}
REQUESTS: dict[str, dict[str, Any]] = {
    "responses-to-chat": {
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "r"}]},
            {"type": "function_call", "call_id": "c", "name": "w", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
        ],
        "instructions": "i",
        "tools": [FUNCTION, {"type": "namespace", "name": "n", "tools": [FUNCTION]}],
        "tool_choice": {"type": "function", "name": "w"},
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
    },
    "messages-to-chat": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "c", "name": "w", "input": {"a": 1}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c", "content": "x"}],
            },
        ],
        "system": [{"type": "text", "text": "s"}],
        "tools": [{"name": "w", "input_schema": {}}],
        "tool_choice": {"type": "tool", "name": "w"},
        "thinking": {"type": "enabled", "budget_tokens": 5},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    },
    "chat-to-messages": {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]},
            {"role": "assistant", "tool_calls": [{"id": "c"} | CHAT_FUNCTION]},
            {"role": "tool", "tool_call_id": "c", "content": "x"},
        ],
        "tools": [CHAT_FUNCTION],
        "tool_choice": CHAT_FUNCTION,
        "response_format": FORM,
        "temperature": 1.5,
    },
}
SAID = {
    "content": "x",
    "reasoning": "r",
    "refusal": None,
    "tool_calls": [{"index": 0, "id": "a", "function": {"name": "w", "arguments": "{}"}}],
}
CHUNK = {"id": "c", "choices": [{"index": 0, "delta": SAID, "finish_reason": None}]}
BLOCK = {"type": "tool_use", "id": "i", "name": "w", "input": {}}
MESSAGE = {"id": "m", "content": [BLOCK], "stop_reason": "x", "usage": {"output_tokens": 2}}
EVENTS = [
    {"type": "message_start", "message": MESSAGE},
    {"type": "content_block_start", "index": 0, "content_block": BLOCK},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "input_json_delta", "partial_json": "{}"},
    },
    {"type": "message_delta", "delta": {"stop_reason": "x"}, "usage": {"output_tokens": 3}},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((*path, key))
        if isinstance(inner, dict | list):
            found += places(inner, (*path, key))
    return found


@st.composite
def odd(draw: Any, value: dict[str, Any]) -> bytes:
    """The value as JSON, with one part that is anything else, or is missing."""
    changed = json.loads(json.dumps(value))
    *path, last = draw(st.sampled_from(places(value)))
    holder = changed
    for key in path:
        holder = holder[key]
    if draw(st.booleans()) or not isinstance(holder, dict):
        holder[last] = draw(ODD)
    else:
        del holder[last]
    return json.dumps(changed).encode()


@pytest.mark.parametrize("name", REQUESTS)
@given(data=st.data())
def test_a_request_is_translated_or_refused(name, data):
    body = REQUESTS[name]
    prompt = "input" if "input" in body else "messages"
    odd_body = json.loads(data.draw(odd(body)))
    odd_body = body | odd_body if isinstance(odd_body.get(prompt), list) else body
    sent = json.dumps({"model": "m"} | odd_body).encode()
    with contextlib.suppress(Untranslatable):
        json.loads(TRANSLATIONS[name].request(sent, Receiver(("reasoning_effort",))).body)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("messages-to-chat", check_messages),
        ("responses-to-chat", check_responses),
        ("chat-to-messages", check_chat),
    ],
)
@given(data=st.data())
def test_a_stream_follows_its_grammar(name, check, data):
    stream = TRANSLATIONS[name].open_stream(
        clock=lambda: 1.0, hide_usage=True, own_key=None, context=CONTEXT
    )
    shown = b""
    if name == "chat-to-messages":
        for event in EVENTS:
            kind, said = event["type"], data.draw(odd(event))
            shown += stream.feed(b"event: %b\ndata: %b\n\n" % (str(kind).encode(), said))
        shown += stream.feed(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
    else:
        for said in data.draw(st.lists(odd(CHUNK), min_size=1, max_size=4)):
            shown += stream.feed(b"data: %b\n\n" % said)
        shown += stream.feed(b"data: [DONE]\n\n")
    assert check(shown + stream.end()).state in ("end", "error")


@pytest.mark.parametrize("name", REQUESTS)
@given(data=st.data())
def test_a_response_is_translated_or_bad(name, data):
    completion = {"choices": [{"index": 0, "message": SAID, "finish_reason": "stop"}]}
    body = data.draw(odd(MESSAGE if name == "chat-to-messages" else completion))
    with contextlib.suppress(BadResponse):
        json.loads(TRANSLATIONS[name].response(body, CONTEXT))


@pytest.mark.parametrize("name", REQUESTS)
def test_a_body_of_very_many_values_is_refused_before_they_are_parsed(name):
    translate = TRANSLATIONS[name].request
    body = json.dumps({"model": "m", **REQUESTS[name]}).encode()[:-1]
    with pytest.raises(Untranslatable, match="over 200000 values"):
        translate(body + b',"metadata":[%b{}]}' % (b"{}," * 200_000), Receiver())
    # Commas in texts are none between values.
    text = json.dumps('{"a": [], "b\\": 1},' * 100_000).encode()
    assert translate(body.replace(b'"x"', text) + b"}", Receiver()).body.count(b",") > 200_000


@pytest.mark.parametrize("more", ["", ";base64", ";charset=x", ";b64;" + "b=1;" * 9 + "c"])
def test_parameters_of_an_image(more):
    block = image_block(f"data:image/png{more};base64,AA==")
    assert block["source"] == {"type": "base64", "media_type": "image/png", "data": "AA=="}


def test_an_image_of_very_many_parameters_takes_little_memory():
    tracemalloc.start()
    try:
        with pytest.raises(Untranslatable, match="no image in base64"):
            image_block("data:a" + ";b" * 500_000)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def image_block(url: str) -> Any:
    image = {"type": "image_url", "image_url": {"url": url}}
    body = {"model": "m", "messages": [{"role": "user", "content": [image]}]}
    sent = TRANSLATIONS["chat-to-messages"].request(json.dumps(body).encode(), Receiver())
    return json.loads(sent.body)["messages"][0]["content"][0]
