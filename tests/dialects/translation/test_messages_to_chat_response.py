"""Whole chat completions as Anthropic's clients get them."""

import json
from typing import Any

import pytest
from anthropic.types import Message

from nexus.dialects.anthropic.unsigned import signature
from nexus.dialects.translation import TRANSLATIONS
from nexus.dialects.translation.rules import BadResponse
from nexus.dialects.translation.translation import ClientContext

ONE = TRANSLATIONS["messages-to-chat"]


def translated(message: dict[str, Any], finish: str = "stop", **more: Any) -> Message:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish}
    body = {"id": "chatcmpl-7", "object": "chat.completion", "model": "m", "choices": [choice]}
    made = ONE.response(json.dumps(body | more).encode(), ClientContext(model="o/m"))
    return Message.model_validate_json(made, strict=True)


def test_reasoning_text_and_calls_come_in_this_order():
    call = {"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"a": 1}'}}
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 20},
    }
    message = translated(
        {"content": "So", "reasoning_content": "Hm", "tool_calls": [call]},
        "tool_calls",
        usage=usage,
    )
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    thinking, said, tool = message.content
    assert (thinking.thinking, said.text) == ("Hm", "So")
    assert thinking.signature == signature("o/m")
    assert (tool.id, tool.name, tool.input) == ("c1", "w", {"a": 1})
    assert (message.id, message.model) == ("chatcmpl-7", "m")
    assert message.stop_reason == "tool_use"
    used = message.usage
    assert (used.input_tokens, used.cache_read_input_tokens, used.output_tokens) == (10, 20, 4)


def test_parts_of_the_content_are_reasoning_and_text():
    """Mistral's models reason so."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
        {"type": "text", "text": "So"},
    ]
    thinking, said = translated({"content": parts}).content
    assert thinking.signature == signature()
    assert (thinking.thinking, said.text) == ("Hm", "So")


@pytest.mark.parametrize(
    ("said", "finish", "reason"),
    [
        ({"content": "x"}, "stop", "end_turn"),
        ({"content": "x"}, "length", "max_tokens"),
        ({"content": None, "refusal": "no"}, "stop", "refusal"),
        ({"content": ""}, "content_filter", "refusal"),
        ({"tool_calls": [{"function": {"name": "w", "arguments": ""}}]}, "stop", "tool_use"),
        ({"tool_calls": [{"function": {"name": "w", "arguments": {}}}]}, "stop", "tool_use"),
    ],
)
def test_the_reason_of_the_end(said, finish, reason):
    message = translated(said, finish)
    assert message.stop_reason == reason
    assert len(message.content) == bool(
        said.get("content") or len(said) > 1 or "tool_calls" in said
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"[]", "no chat completion"),
        (b'{"choices":[]}', "no message"),
        (
            b'{"choices":[{"message":{"tool_calls":[{"function":{"name":"w","arguments":"{"}}]}}]}',
            "no JSON object",
        ),
    ],
)
def test_what_no_message_can_be_is_told(body, why):
    with pytest.raises(BadResponse, match=why):
        ONE.response(body, ClientContext())


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_tokens"), ("content_filter", "refusal")]
)
def test_arguments_that_are_cut_off_are_empty(finish, reason):
    calls = [{"id": "c", "function": {"name": "w", "arguments": '{"city": "Ber'}}]
    message = translated({"tool_calls": calls}, finish)
    assert message.stop_reason == reason
    assert message.content[0].input == {}
