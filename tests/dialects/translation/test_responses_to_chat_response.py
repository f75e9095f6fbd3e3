"""Whole chat completions as clients of the Responses API get them."""

import json
from typing import Any

import pytest
from openai.types.responses import Response

from nexus.dialects.translation import TRANSLATIONS
from nexus.dialects.translation.rules import BadResponse
from nexus.dialects.translation.translation import ClientContext

ONE = TRANSLATIONS["responses-to-chat"]
CONTEXT = ClientContext(
    b'"parallel_tool_calls":false,"tool_choice":"auto","tools":[],"metadata":{"a":"b"}',
    {"ns__w": ("ns", "w")},
)


def translated(message: dict[str, Any], finish: str = "stop", **more: Any) -> Response:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish}
    body = {"id": "c-7", "object": "chat.completion", "created": 9, "model": "m"}
    made = ONE.response(json.dumps(body | {"choices": [choice]} | more).encode(), CONTEXT)
    return Response.model_validate_json(made, strict=True)


def test_reasoning_text_and_calls_come_in_this_order():
    call = {"id": "c1", "type": "function", "function": {"name": "ns__w", "arguments": '{"a": 1}'}}
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 20},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    response = translated(
        {"content": "So", "reasoning_content": "Hm", "tool_calls": [call]},
        "tool_calls",
        usage=usage,
    )
    thinking, said, tool = response.output
    assert (thinking.content[0].text, said.content[0].text) == ("Hm", "So")
    assert (tool.call_id, tool.namespace, tool.name) == ("c1", "ns", "w")
    assert (tool.arguments, tool.status) == ('{"a": 1}', "completed")
    assert (response.id, response.model, response.created_at) == ("resp_c-7", "m", 9)
    assert (response.status, response.metadata, response.store) == ("completed", {"a": "b"}, False)
    assert response.parallel_tool_calls is False
    used = response.usage
    assert (used.input_tokens, used.output_tokens, used.total_tokens) == (30, 4, 34)
    assert used.input_tokens_details.cached_tokens == 20
    assert used.output_tokens_details.reasoning_tokens == 3


def test_parts_of_the_content_are_reasoning_and_text():
    """Mistral's models reason so."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
        {"type": "text", "text": "So"},
    ]
    thinking, said = translated({"content": parts}).output
    assert (thinking.content[0].text, said.content[0].text) == ("Hm", "So")


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_the_reason_of_the_end(finish, status, reason):
    response = translated({"content": "x"}, finish)
    found = response.incomplete_details and response.incomplete_details.reason
    assert (response.status, found, response.usage) == (status, reason, None)


def test_other_shapes():
    [refused] = translated({"content": None, "refusal": "I can't."}).output
    assert refused.content[0].refusal == "I can't."
    call = {"function": {"name": "w", "arguments": {"a": 1}}}
    one, two = translated({"tool_calls": [call, {"function": {"name": "w"}}]}).output
    assert (json.loads(one.arguments), two.arguments) == ({"a": 1}, "{}")
    assert one.call_id != two.call_id
    assert translated({"content": ""}).output == []


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"choices": []}', b'{"choices": [{}]}'])
def test_what_is_no_completion(body):
    with pytest.raises(BadResponse):
        ONE.response(body, CONTEXT)
