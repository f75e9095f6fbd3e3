"""Reading a backend's answer: any packet border, and no doubt about where it ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.proxy.http1 import AnswerReader, MalformedAnswer

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: t\r\n\r\n"
CONTINUED = b"HTTP/1.1 100 Continue\r\nX-A: b\r\n\r\n" + PLAIN


def read(data: bytes, cuts: list[int]) -> tuple[AnswerReader, bytes]:
    reader, body, start = AnswerReader(), b"", 0
    for cut in [*sorted(cut % len(data) for cut in cuts), len(data)]:
        if cut > start:
            reader.feed(data[start:cut])
            body += reader.body()
            start = cut
    return reader, body


@pytest.mark.parametrize("data", [PLAIN, CHUNKED, CONTINUED], ids=["length", "chunked", "100-continue"])
@given(cuts=st.lists(st.integers(0, 1000), max_size=12))
def test_any_packet_borders(data, cuts):
    reader, body = read(data, cuts)
    assert (reader.status, body, reader.complete, reader.reusable) == (200, b"hello", True, True)
    assert "x-a" not in dict(reader.headers)


def test_until_the_connection_closes():
    reader = AnswerReader()
    reader.feed(b"HTTP/1.1 200 OK\r\n\r\nhel")
    reader.feed(b"lo")
    assert not reader.complete
    reader.feed(b"")
    assert reader.complete
    assert not reader.reusable


def test_cut_short_is_not_complete():
    reader = AnswerReader()
    reader.feed(PLAIN[:-1])
    reader.feed(b"")
    assert not reader.complete
    assert not reader.reusable


def test_connection_close_is_not_reused():
    reader, _ = read(PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), [])
    assert reader.complete
    assert not reader.reusable


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nx",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello",
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        b"HTTP/1.1 banana\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 201 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        PLAIN + PLAIN,
    ],
)
def test_what_cannot_be_trusted_is_refused(data):
    with pytest.raises(MalformedAnswer):
        read(data, [])


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    reader = AnswerReader()
    try:
        reader.feed(data)
        reader.feed(b"")
    except MalformedAnswer:
        return
    assert reader.head_complete or not reader.complete
