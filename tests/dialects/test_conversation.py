"""The part of a prompt that all turns of a conversation have in common."""

import json

import msgspec
import pytest

from nexus.dialects.conversation import first_message_end, prompt_start, text_at

SYSTEM = {"role": "system", "content": 'You say "[{}]" and \\ often.'}
FIRST = {"role": "user", "content": [{"type": "text", "text": "Hello } there"}]}
LATER = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And now?"}]
BILLING = {"role": "system", "content": "x-anthropic-billing-header: cch=abc12; entrypoint=cli"}


def raw(messages, **form) -> list[bytes]:
    return [b'[{"type":"function"}]', json.dumps(messages, **form).encode()]


def start(pieces: list[bytes], most: int = 65536, first: int = 4096) -> tuple[bytes, int]:
    found, messages_at = prompt_start(pieces, most)
    return bytes(found), first_message_end(found, messages_at, first)


CONTENT_FIRST = [
    {"content": one["content"], "role": one["role"]} for one in [SYSTEM, FIRST, *LATER]
]


@pytest.mark.parametrize("form", [{}, {"indent": 1}, {"separators": (",", ":")}])
@pytest.mark.parametrize(
    ("before", "first", "later"),
    [
        ([], FIRST, LATER),
        ([SYSTEM], FIRST, LATER),
        ([SYSTEM, SYSTEM], FIRST, LATER),
        ([CONTENT_FIRST[0]], CONTENT_FIRST[1], CONTENT_FIRST[2:]),
    ],
)
def test_all_turns_start_alike(before, first, later, form):
    one, end = start(raw([*before, first], **form))
    more, more_end = start(raw([*before, first, *later], **form))
    assert one[:end] == more[:more_end]
    assert len(more) > more_end == one.rindex(b"}") + 1
    bye = {name: text if name == "role" else "Bye" for name, text in first.items()}
    other, other_end = start(raw([*before, bye], **form))
    assert other[:other_end] != one[:end]


def test_a_long_start_is_cut():
    long = [{"role": "user", "content": "x" * 9000}]
    found, end = start(raw(long))
    assert end == 4096 + len(raw(long)[0])
    assert len(found) > 9000
    later, later_end = start(raw([*long, *LATER]))
    assert later[:later_end] == found[:end]
    assert len(start(raw(long), 1024)[0]) == 1024


def test_without_a_message_of_the_user_all_of_the_start_counts():
    pieces = [json.dumps([SYSTEM]).encode()]
    assert start(pieces) == (pieces[0], len(pieces[0]))
    assert start([b'"A text."']) == (b'"A text."', 9)


@pytest.mark.parametrize("tools", [[], [b'[{"type":"function"}]']])
def test_a_counter_in_the_system_text_is_left_out(tools):
    other = {**BILLING, "content": "x-anthropic-billing-header: cch=fff99; entrypoint=cli"}
    found, end = start([*tools, raw([BILLING, SYSTEM, FIRST])[1]])
    assert start([*tools, raw([other, SYSTEM, FIRST])[1]]) == (found, end)
    assert found[:end].endswith(json.dumps(FIRST).encode())


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
