"""Heads that are known again by the bytes around the body's length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.http.head_cache import HeadCache
from nexus.http.response_parser import ResponseParser
from nexus.server.request_head import HeadLimits, RequestHeadParser, parse_request_head

LIMITS = HeadLimits(100, 16380, 8190)
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 120\r\nX-A: b\r\n\r\n"
LAST = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\ncontent-length:\t120\r\n\r\n"


@pytest.mark.parametrize("head", [HEAD, LAST])
@pytest.mark.parametrize("length", [b"120", b"0", b"7", b"99", b"999", b"007"])
def test_same_but_for_the_length(head, length):
    repeated = HeadCache.of(head)
    assert repeated is not None
    again = head.replace(b"120", length)
    assert repeated.match(again + b"x" * 200) == (int(length), len(again))


@pytest.mark.parametrize(
    "data",
    [
        b"", HEAD[:-1], HEAD[:60], HEAD.replace(b"120", b"1200"), HEAD.replace(b"120", b""), HEAD.replace(b"120", b"+12"),
        HEAD.replace(b"120", b"1 0"), HEAD.replace(b"120", b"12 "), HEAD.replace(b"Host: a", b"Host: b"),
        HEAD.replace(b"X-A: b", b"X-A: c"), HEAD.replace(b"X-A: b\r\n", b""), HEAD.replace(b"120", b"12\r\nX: y"),
        HEAD.replace(b"120", b"\xb2"),
    ],
)  # fmt: skip
def test_another_head(data):
    repeated = HeadCache.of(HEAD)
    assert repeated is not None
    assert repeated.match(data + b"POST ") is None


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n", HEAD.replace(b"120", b"120 ")]
)
def test_what_is_not_known_again(head):
    assert HeadCache.of(head) is None


@given(st.integers(0, len(HEAD)), st.binary(max_size=4))
def test_a_reader_that_knows_a_head_reads_as_one_that_does_not(at, noise):
    data = HEAD[:at] + noise + HEAD[at + len(noise) :]
    reader = RequestHeadParser(LIMITS)
    assert reader.parse(HEAD) == parse_request_head(HEAD, LIMITS)
    assert reader.parse(data) == parse_request_head(data, LIMITS)
    assert reader.parse(HEAD) == parse_request_head(HEAD, LIMITS)


def test_what_is_sent_on_is_kept_for_the_next_request():
    reader = RequestHeadParser(LIMITS)
    first, second = reader.parse(HEAD), reader.parse(HEAD.replace(b"120", b"12"))
    assert first is not None
    assert second is not None
    assert first.headers is second.headers
    assert (first.length, second.length) == (120, 12)


def test_answers_over_one_connection():
    head = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: %d\r\nX-Left: 3\r\n\r\n"
    before = ResponseParser()
    before.feed(head % 12 + b"x" * 12)
    after = ResponseParser(before.plain)
    after.feed(head % 5 + b"y" * 5)
    assert after.plain is before.plain
    assert (after.status, after.complete, after.body(), after.end_to_end()) == (
        200,
        True,
        b"y" * 5,
        [("x-left", "3")],
    )
    # One that is not here whole is the parser's, and what was kept says nothing of it.
    part = ResponseParser(before.plain)
    part.feed(head.replace(b"X-Left: 3", b"X-Left: 4") % 5 + b"y")
    assert not part.complete
    assert part.end_to_end() == [("x-left", "4")]
