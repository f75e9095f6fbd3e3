"""Server-sent events at any packet border."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.http.sse import Event, EventReader

MIXED = (
    b": a comment\n\nevent: x\nid: 7\ndata: one\n\n"
    b"data: two\r\n\r\ndata: three\r\rdata: fo\ndata:ur\n\n\n\n"
    + "data: größer ✓\n\n".encode()
    + b"data: [DONE]"
)
EVENTS = [b"one", b"two", b"three", b"fo\nur", "größer ✓".encode(), b"[DONE]"]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % len(data) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(at)]


def read(parts) -> list[Event]:
    reader = EventReader()
    events = [event for piece in parts for event in reader.feed(piece)]
    rest = reader.rest()
    return [*events, rest] if rest else events


def data_of(events: list[Event]) -> list[bytes]:
    return [event.data for event in events if event.data is not None]


@given(st.lists(st.integers(0, 1000), max_size=40))
def test_any_packet_borders(cuts):
    events = read(pieces(MIXED, cuts))
    assert data_of(events) == EVENTS
    assert b"".join(event.raw for event in events) == MIXED, "no byte is lost or doubled"


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_each_line_ending(end, size):
    text = end.join(
        [b"event: error", b"data: a", b"data: b", b"", b": x", b"", b"data: c", b"", b""]
    )
    events = read(text[start : start + size] for start in range(0, len(text), size))
    assert data_of(events) == [b"a\nb", b"c"]
    assert [event.kind for event in events if event.data] == [b"error", b""]
    assert b"".join(event.raw for event in events) == text


def test_a_megabyte_in_small_pieces():
    data = b"data: " + b"x" * 1_000_000 + b"\n\n"
    events = read(data[start : start + 10] for start in range(0, len(data), 10))
    assert [len(event.data or b"") for event in events] == [1_000_000]


def test_byte_order_mark():
    assert data_of(read([b"\xef\xbb\xbfdata: x\n\n", b"data: y\n\n"])) == [b"x", b"y"]
