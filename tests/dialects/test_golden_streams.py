"""A corpus of streams in the forms of `/v1/messages` and `/v1/responses`, cut at every byte."""

import re
from pathlib import Path

import pytest

from nexus.dialects import anthropic, responses
from nexus.dialects.base import Usage

CORPUS = Path(__file__).parent.parent / "corpus" / "streams"
DIALECTS = {"messages": anthropic, "responses": responses}
EXPECTED = {
    # name: (usage, counted tokens, finished, status of the error)
    "messages-text": (Usage(12, 7), 3, True, None),
    "messages-thinking": (Usage(47, 9, 30, None, 5), 3, True, None),
    "messages-tools": (Usage(12, 21), 5, True, None),
    "messages-server-tool": (Usage(80, 15), 3, True, None),
    "messages-no-content": (Usage(12, 0), 0, True, None),
    "messages-unknown-events": (Usage(12, 1), 1, True, None),
    "messages-error-first": (Usage(12, 1), 0, False, 529),
    "messages-error-later": (Usage(12, 1), 1, False, 500),
    "messages-cut": (Usage(12, 1), 2, False, None),
    "messages-crlf": (Usage(12, 2), 2, True, None),
    "messages-nameless": (Usage(12, 2), 2, True, None),
    "responses-text": (Usage(12, 7, 4, 0), 3, True, None),
    "responses-reasoning": (Usage(12, 30, 0, 25), 3, True, None),
    "responses-tool": (Usage(12, 9, 0, 0), 2, True, None),
    "responses-parallel-tools": (Usage(12, 21, 0, 0), 3, True, None),
    "responses-custom-tool": (Usage(12, 4, 0, 0), 1, True, None),
    "responses-web-search": (Usage(80, 15, 0, 0), 1, True, None),
    "responses-refusal": (Usage(12, 3, 0, 0), 2, True, None),
    "responses-incomplete": (Usage(12, 1, 0, 0), 1, True, None),
    "responses-no-deltas": (Usage(12, 2, 0, 0), 0, True, None),
    "responses-no-usage": (None, 2, True, None),
    "responses-failed-first": (None, 0, False, 429),
    "responses-failed-later": (Usage(12, 1, 0, 0), 1, False, 500),
    "responses-error-event": (None, 1, False, 500),
    "responses-cut": (None, 2, False, None),
    "responses-crlf": (Usage(12, 2, 0, 0), 2, True, None),
    "responses-nameless": (Usage(12, 2, 0, 0), 2, True, None),
}


def read(name: str, packets: list[bytes]):
    """What the reader finds in a stream that comes in these packets, and what the client gets."""
    dialect = DIALECTS[name.partition("-")[0]]
    stream = dialect.open_stream(clock=lambda: 1.0, hide_usage=False, own_key=None)
    shown = b"".join(map(stream.feed, packets)) + stream.end()
    error = stream.error and stream.error.status
    found = stream.usage, stream.counted_tokens(), stream.finished, error
    return found, shown, (stream.events, stream.content, stream.stored_ids)


def test_every_file_is_expected():
    assert {file.stem for file in CORPUS.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_cut_gives_the_same(name):
    data = (CORPUS / f"{name}.sse").read_bytes()
    whole = read(name, [data])
    assert whole[:2] == (EXPECTED[name], data)
    for size in (*range(1, 20), 64, 1000):
        packets = [data[at : at + size] for at in range(0, len(data), size)]
        assert read(name, packets) == whole, size
    events = re.findall(rb".+?\n\r?\n", data, re.DOTALL)
    assert read(name, events) == whole


@pytest.mark.parametrize("name", EXPECTED)
def test_two_packets_give_the_same_wherever_they_are_cut(name):
    data = (CORPUS / f"{name}.sse").read_bytes()
    whole = read(name, [data])
    for at in range(1, len(data)):
        if at % 7 and b"\n" not in data[at - 2 : at + 2]:
            continue  # within a long line any cut is like the next
        assert read(name, [data[:at], data[at:]]) == whole, at


@pytest.mark.parametrize("name", ["messages-crlf", "responses-crlf"])
def test_a_reader_that_stops_at_the_end_has_all_bytes(name):
    data = (CORPUS / f"{name}.sse").read_bytes()
    dialect = DIALECTS[name.partition("-")[0]]
    stream = dialect.open_stream(clock=lambda: 1.0, hide_usage=False, own_key=None)
    shown = stream.feed(data[:-1])
    assert (stream.done, shown) == (True, data)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stream_that_stops_anywhere_is_not_finished(name):
    data = (CORPUS / f"{name}.sse").read_bytes()
    for at in range(0, len(data) - 4, 5):
        found, shown, _ = read(name, [data[:at]])
        assert (found[2], shown) == (False, data[:at])
