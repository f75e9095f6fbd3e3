"""A cached head is recognized by the bytes around the body's length."""

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
def test_the_same_head_with_another_length(head, length):
    cache = HeadCache.of(head)
    assert cache is not None
    again = head.replace(b"120", length)
    assert cache.match(again + b"x" * 200) == (int(length), len(again))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD[:-1],
        HEAD[:60],
        HEAD.replace(b"120", b"1200"),
        HEAD.replace(b"120", b""),
        HEAD.replace(b"120", b"+12"),
        HEAD.replace(b"120", b"1 0"),
        HEAD.replace(b"120", b"12 "),
        HEAD.replace(b"Host: a", b"Host: b"),
        HEAD.replace(b"X-A: b", b"X-A: c"),
        HEAD.replace(b"X-A: b\r\n", b""),
        HEAD.replace(b"120", b"12\r\nX: y"),
        HEAD.replace(b"120", b"\xb2"),
    ],
)
def test_another_head(data):
    cache = HeadCache.of(HEAD)
    assert cache is not None
    assert cache.match(data + b"POST ") is None


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n", HEAD.replace(b"120", b"120 ")]
)
def test_a_head_that_cannot_be_cached(head):
    assert HeadCache.of(head) is None


@given(st.integers(0, len(HEAD)), st.binary(max_size=4))
def test_a_parser_with_a_cache_reads_as_one_without(at, noise):
    data = HEAD[:at] + noise + HEAD[at + len(noise) :]
    reader = RequestHeadParser(LIMITS)
    assert reader.parse(HEAD) == parse_request_head(HEAD, LIMITS)
    assert reader.parse(data) == parse_request_head(data, LIMITS)
    assert reader.parse(HEAD) == parse_request_head(HEAD, LIMITS)


def test_requests_with_the_same_head_share_their_headers():
    reader = RequestHeadParser(LIMITS)
    first, second = reader.parse(HEAD), reader.parse(HEAD.replace(b"120", b"12"))
    assert first is not None
    assert second is not None
    assert first.headers is second.headers
    assert (first.length, second.length) == (120, 12)


def test_responses_on_one_connection():
    head = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: %d\r\nX-Left: 3\r\n\r\n"
    before = ResponseParser()
    before.feed(head % 12 + b"x" * 12)
    after = ResponseParser(before.cached_head)
    after.feed(head % 5 + b"y" * 5)
    assert after.cached_head is before.cached_head
    assert (after.status, after.complete, after.body(), after.client_headers()) == (
        200,
        True,
        b"y" * 5,
        [("x-left", "3")],
    )
    # A response that did not come whole is parsed by llhttp; the cached head says nothing about it.
    part = ResponseParser(before.cached_head)
    part.feed(head.replace(b"X-Left: 3", b"X-Left: 4") % 5 + b"y")
    assert not part.complete
    assert part.client_headers() == [("x-left", "4")]
