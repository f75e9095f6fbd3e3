"""Thinking that a translation has made does not reach backends that check signatures."""

import json

import pytest

from nexus.dialects.anthropic.unsigned import without_unsigned

OURS = {"type": "thinking", "thinking": "Hm", "signature": "nexus"}
WANTED = OURS | {"signature": "nexus reasoning_content o/m"}
THEIRS = {"type": "thinking", "thinking": '"nexus"', "signature": "nexusEqQB"}
TEXT = {"type": "text", "text": 'the signature is "nexus"', "n": 1.50}
HI = {"role": "user", "content": "hi"}


def said(*blocks):
    return {"role": "assistant", "content": list(blocks)}


@pytest.mark.parametrize(
    ("messages", "left"),
    [
        ([HI, said(OURS, TEXT), HI], [HI, said(TEXT), HI]),
        ([HI, said(OURS), HI], [HI, HI]),
        ([HI, said(THEIRS, OURS, TEXT, WANTED)], [HI, said(THEIRS, TEXT)]),
    ],
)
def test_only_such_blocks_go(messages, left):
    body = {"model": "m", "messages": messages, "max_tokens": 1.50}
    for indent in (None, 1):
        given = json.dumps(body, indent=indent).encode()
        made = without_unsigned(given)
        assert json.loads(made) == body | {"messages": left}


@pytest.mark.parametrize(
    "messages",
    [
        [HI, said(THEIRS, TEXT)],
        [{"role": "user", "content": '"nexus"'}],
        [{"role": "user", "content": [{"type": "thinking", "signature": ["nexus"]}, "nexus", 1]}],
        [{"role": "user"}, "nexus", 1],
        "nexus",
        {"nexus": "nexus"},
        [1] * 200_002 + [said(OURS)],
    ],
)
def test_all_else_keeps_its_bytes(messages):
    given = json.dumps({"model": "m", "messages": messages}).encode()
    assert without_unsigned(given) is given
