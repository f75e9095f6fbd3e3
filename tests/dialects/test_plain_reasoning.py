"""Reasoning as a text does not reach services that have it only encrypted."""

import json

import pytest

from nexus.dialects.responses.plain_reasoning import without_plain_reasoning

TEXT = {"type": "reasoning_text", "text": "Hm"}
PLAIN = {"type": "reasoning", "summary": [], "content": [TEXT], "encrypted_content": None}
SEALED = {"type": "reasoning", "summary": [], "content": [], "encrypted_content": "gAAA"}
CALL = {"type": "function_call", "call_id": "c", "name": "w", "arguments": '{"a": 1.50}'}
SAID = {"role": "user", "content": 'what is "reasoning_text"?', "n": 1.50}


@pytest.mark.parametrize("indent", [None, 1])
def test_only_such_items_go(indent):
    body = {"model": "m", "input": [SAID, PLAIN, CALL, SEALED, PLAIN], "n": 1.50}
    made = without_plain_reasoning(json.dumps(body, indent=indent).encode())
    assert json.loads(made) == body | {"input": [SAID, CALL, SEALED]}


@pytest.mark.parametrize(
    "given",
    [
        [SAID, SEALED, {"type": "message", "content": [TEXT]}],
        ["reasoning_text"],
        "reasoning_text",
        {"type": "reasoning_text"},
        [1] * 200_002 + [PLAIN],
    ],
)
def test_all_else_keeps_its_bytes(given):
    body = json.dumps({"model": "m", "input": given}).encode()
    assert without_plain_reasoning(body) is body
