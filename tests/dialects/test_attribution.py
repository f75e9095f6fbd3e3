"""System text without Claude Code's line about itself. All other bytes stay."""

import json
import tracemalloc

import pytest

from nexus.dialects.anthropic.attribution import without_attribution

LINE = "x-anthropic-billing-header: cc_version=2.1.197; cc_entrypoint=cli; cch=0a1b2;"
MARK = LINE.encode()


def block(text: bytes) -> bytes:
    return b'{"type" : "text", "text":"%b", "cache_control":{"type":"ephemeral"}}' % text


@pytest.mark.parametrize(
    ("system", "left"),
    [
        (b"[%b, %b]" % (block(MARK), block(b"Be kind.")), b"[%b]" % block(b"Be kind.")),
        (b"[ %b ,\n%b]" % (block(b"A"), block(MARK)), b"[ %b]" % block(b"A")),
        (
            b"[%b, %b ,%b]" % (block(b"A"), block(MARK), block(b"B")),
            b"[%b, %b]" % (block(b"A"), block(b"B")),
        ),
        (b"[%b,%b,%b]" % (block(MARK), block(MARK), block(b"B")), b"[%b]" % block(b"B")),
        (b"[%b,%b,%b]" % (block(b"A"), block(MARK), block(MARK)), b"[%b]" % block(b"A")),
        (
            b"[%b]" % block(MARK + b'\\n\\nYou are \\u00e9\\\\n \\"kind\\".'),
            b"[%b]" % block(b'You are \\u00e9\\\\n \\"kind\\".'),
        ),
        (b'"%b\\nBe \\u00e9."' % MARK, b'"Be \\u00e9."'),
        (b'"%b a\\\\n \\"b\\" \\u000b\\nBe."' % MARK, b'"Be."'),
        (b'"Say %b"' % MARK, None),
        (b"[%b]" % block(b"Say " + MARK), None),
        (b'[{"type":"text"},{"text":1,"a":"%b"},7,null]' % MARK, None),
        (b'{"text":"%b"}' % MARK, None),
        (b"null", None),
    ],
)
def test_only_that_line_goes(system, left):
    body = (
        b' {"model": "m", "max_tokens":5 , "system" : %b,"x":NaN,\n "messages": [{"role":"user",'
        b'"content":"' + MARK + b'"}],"y":"\\ud83d" } '
    )
    if left is None:
        assert without_attribution(body % system) == body % system
    else:
        assert without_attribution(body % system) == body % left


@pytest.mark.parametrize("system", [b'"%b"' % MARK, b"[ %b ]" % block(MARK), b'"%b\\n"' % MARK])
def test_a_system_text_of_nothing_else_goes_as_a_whole(system):
    body = b'{"model":"m","system":%b,"messages":[1.50]}' % system
    assert without_attribution(body) == b'{"model":"m","messages":[1.50]}'


def test_a_body_without_that_line_is_the_same_object():
    body = json.dumps({"model": "m", "system": "Be kind."}).encode()
    assert without_attribution(body) is body


@pytest.mark.parametrize("text", [b"a", b'\\"', b"\\n", b"\\\\"])
def test_a_long_line_takes_little_memory(text):
    body = b'{"model":"m","system":"%b","messages":[]}' % (MARK + text * 1_000_000)
    tracemalloc.start()
    try:
        assert without_attribution(body) == b'{"model":"m","messages":[]}'
        assert tracemalloc.get_traced_memory()[1] < 8 * len(body)
    finally:
        tracemalloc.stop()


def test_a_list_of_very_many_values_is_left_as_it_is():
    body = b'{"system":[%b%b]}' % (b"0," * 20_000, block(MARK))
    assert without_attribution(body) is body
