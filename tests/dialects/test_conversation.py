"""The part of a prompt that all turns of a conversation have in common."""

import json

import msgspec
import pytest

from nexus.dialects.conversation import prompt_start, text_at

SYSTEM = {"role": "system", "content": 'You say "[{}]" and \\ often.'}
FIRST = {"role": "user", "content": [{"type": "text", "text": "Hello } there"}]}
LATER = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And now?"}]
BILLING = {"role": "system", "content": "x-anthropic-billing-header: cch=abc12; entrypoint=cli"}


def raw(messages) -> list[bytes]:
    return [b'[{"type":"function"}]', json.dumps(messages).encode()]


@pytest.mark.parametrize("before", [[], [SYSTEM], [SYSTEM, SYSTEM]])
def test_all_turns_start_alike(before):
    first, end = prompt_start(raw([*before, FIRST]), 65536, 4096)
    turns = [*before, FIRST, *LATER]
    later, later_end = prompt_start(raw(turns), 65536, 4096)
    assert first[:end] == later[:later_end]
    assert later[:later_end].endswith(json.dumps(FIRST).encode())
    assert len(later) > later_end
    other, other_end = prompt_start(raw([*before, {"role": "user", "content": "Bye"}]), 65536, 4096)
    assert other[:other_end] != first[:end]


def test_a_long_start_is_cut():
    long = [{"role": "user", "content": "x" * 9000}]
    start, end = prompt_start(raw(long), 65536, 4096)
    assert end == 4096 + len(raw(long)[0])
    assert len(start) > 9000
    later, later_end = prompt_start(raw([*long, *LATER]), 65536, 4096)
    assert later[:later_end] == start[:end]
    assert len(prompt_start(raw(long), 1024, 4096)[0]) == 1024


def test_a_counter_in_the_system_text_is_left_out():
    other = {**BILLING, "content": "x-anthropic-billing-header: cch=fff99; entrypoint=cli"}
    start, end = prompt_start(raw([BILLING, SYSTEM, FIRST]), 65536, 4096)
    assert prompt_start(raw([other, SYSTEM, FIRST]), 65536, 4096) == (start, end)
    assert start[:end].endswith(json.dumps(FIRST).encode())


@pytest.mark.parametrize(
    ("field", "keys", "text"),
    [
        (b'"abc"', [], "abc"),
        (b'{"user_id":"u1"}', ["user_id"], "u1"),
        (b'{"user_id":7}', ["user_id"], None),
        (b'"abc"', ["user_id"], None),
        (None, [], None),
        (b'{"user_id":"' + b"x" * 5000 + b'"}', ["user_id"], None),
    ],
)
def test_text_at(field, keys, text):
    assert text_at(None if field is None else msgspec.Raw(field), keys) == text
