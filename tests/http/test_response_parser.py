"""Reading a backend's answer: any packet border, and no doubt about where it ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.http.response_parser import MalformedResponse, ResponseParser, State, framing_fault

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n"
    b"Trailer: t\r\n\r\n"
)
CONTINUED = b"HTTP/1.1 100 Continue\r\nX-A: b\r\n\r\n" + PLAIN


def read(data: bytes, cuts: list[int]) -> tuple[ResponseParser, bytes]:
    reader, body, start = ResponseParser(), b"", 0
    for cut in [*sorted(cut % len(data) for cut in cuts), len(data)]:
        if cut > start:
            reader.feed(data[start:cut])
            body += reader.body()
            start = cut
    return reader, body


@pytest.mark.parametrize(
    "data", [PLAIN, CHUNKED, CONTINUED], ids=["length", "chunked", "100-continue"]
)
@given(cuts=st.lists(st.integers(0, 1000), max_size=12))
def test_any_packet_borders(data, cuts):
    reader, body = read(data, cuts)
    assert (reader.status, body, reader.complete, reader.reusable) == (200, b"hello", True, True)
    assert "x-a" not in dict(reader.headers)


def test_until_the_connection_closes():
    reader = ResponseParser()
    reader.feed(b"HTTP/1.1 200 OK\r\n\r\nhel")
    reader.feed(b"lo")
    assert not reader.complete
    reader.feed(b"")
    assert reader.complete
    assert not reader.reusable


def test_cut_short_is_not_complete():
    reader = ResponseParser()
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
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked \t \r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        b"HTTP/2 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello",
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        b"HTTP/1.1 banana\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 201 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
        + b"".join(b"X-%d: y\r\n" % n for n in range(200))
        + b"\r\nok",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        PLAIN + PLAIN,
    ],
)
def test_what_cannot_be_trusted_is_refused(data):
    with pytest.raises(MalformedResponse):
        read(data, [])


@pytest.mark.parametrize(
    ("status", "lengths", "codings", "fault"),
    [
        (200, ["5"], [], None),
        (200, [], ["chunked"], None),
        (200, [], ["Chunked"], None),
        (200, [], [], None),
        (204, [], [], None),
        (200, ["5", "5"], [], "it gives its length more than once"),
        (200, ["5"], ["chunked"], "it gives a length beside a transfer coding"),
        (200, [], ["gzip, chunked"], "its transfer coding ['gzip, chunked'] is not supported"),
        (200, [], ["chunked\t"], "its transfer coding ['chunked\\t'] is not supported"),
        (
            200,
            [],
            ["chunked", "chunked"],
            "its transfer coding ['chunked', 'chunked'] is not supported",
        ),
        (101, [], [], "it switches protocols"),
    ],
)
def test_framing_fault(status, lengths, codings, fault):
    assert framing_fault(status, lengths, codings) == fault


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "state"),
    [
        ([], State.START),
        ([b"HTTP/1.1 100 Continue\r\n\r\n"], State.HEAD),
        ([HEAD[:20]], State.HEAD),
        ([HEAD], State.BODY),
        ([HEAD, b"2\r\nab"], State.BODY),
        ([HEAD, b"2\r\nab\r\n"], State.BETWEEN_CHUNKS),
        ([HEAD, b"2\r\nab\r\n", b"1\r\nc\r\n"], State.BETWEEN_CHUNKS),
        ([HEAD, b"2\r\nab\r\n", b"1"], State.BODY),
        ([HEAD, b"2\r\nab\r\n", b"0\r\n\r\n"], State.COMPLETE),
        ([PLAIN], State.COMPLETE),
        ([PLAIN[:-1]], State.BODY),
        ([PLAIN[:-1], b""], State.BODY),
        ([b"HTTP/1.1 200 OK\r\n\r\n", b"x", b""], State.COMPLETE),
    ],
)
def test_states(pieces, state):
    reader = ResponseParser()
    for piece in pieces:
        reader.feed(piece)
    assert reader.state is state


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    reader = ResponseParser()
    try:
        reader.feed(data)
        reader.feed(b"")
    except MalformedResponse:
        return
    assert reader.head_complete or not reader.complete


@pytest.mark.parametrize(
    "end", [b"0\r\nX: " + b"y" * 99_000, b"0\r\n" + b"X: y\r\n" * 20_000, b"2;x"]
)
def test_what_is_no_content_is_bounded(end):
    """llhttp keeps a trailer, whatever its length."""
    data = HEAD + b"2\r\nok\r\n" + end + b"z" * 99_000
    with pytest.raises(MalformedResponse, match="its framing is over 65536 bytes"):
        read(data, list(range(0, len(data), 16_000)))


def test_small_chunks_are_content():
    """However long the stream, and wherever their packets are cut."""
    data = HEAD + b"1\r\nx\r\n" * 30_000
    _, body = read(data, list(range(len(HEAD), len(data), 3)))
    assert body == b"x" * 30_000


@pytest.mark.parametrize(("version", "reusable"), [(b"1.1", True), (b"1.0", False)])
def test_chunks_of_http_1_0_end_the_connection(version, reusable):
    head = HEAD.replace(b"1.1", version).replace(b"OK\r\n", b"OK\r\nConnection: keep-alive\r\n")
    reader, body = read(head + b"2\r\nok\r\n0\r\n\r\n", [])
    assert (body, reader.complete, reader.reusable) == (b"ok", True, reusable)


@pytest.mark.parametrize("after", [PLAIN, b"{}", b"\0"])
def test_bytes_after_the_end_spoil_the_connection(after):
    reader = ResponseParser()
    with pytest.raises(MalformedResponse):
        reader.feed(PLAIN + after)
    assert (reader.complete, reader.overrun, reader.reusable) == (True, True, False)


def test_as_many_headers_as_may_be():
    fields = b"".join(b"X-%d: y\r\n" % n for n in range(199))
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + fields + b"\r\nok"
    for cuts in ([], [100]):
        reader, body = read(data, cuts)
        assert (len(reader.headers), body, reader.complete) == (199, b"ok", True)
        with pytest.raises(MalformedResponse, match="over 200 headers"):
            read(data.replace(b"\r\n\r\n", b"\r\nX-More: y\r\n\r\n"), cuts)


@pytest.mark.parametrize("length", [b"Content-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_headers_that_connection_names_are_not_the_clients(length):
    """They are meant for the gateway alone; what else a Connection header says changes nothing."""
    body = b"ok" if b"Length" in length else b"2\r\nok\r\n0\r\n\r\n"
    named = (
        b"Connection: X-Hop, keep-alive\r\nConnection: x-other\r\nX-Hop: 1\r\nX-Other: 2\r\n"
        b"X-End: 3\r\n"
    )
    reader, _ = read(b"HTTP/1.1 200 OK\r\n" + named + length + b"\r\n" + body, [])
    assert reader.complete
    assert reader.client_headers() == [("x-end", "3")]
