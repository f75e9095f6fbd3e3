"""Parsers under bytes that were made to break them, for some seconds each; what is accepted must be
beyond doubt.

The examples follow from a seed: NEXUS_FUZZ_SEED sets another, NEXUS_FUZZ_SECONDS how long each
parser is fuzzed (`make fuzz SECONDS=600 SEED=7`).
"""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from nexus.dialects import openai
from nexus.dialects.base import InvalidBody, PromptField, RequestForm
from nexus.http.response_parser import CachedResponseHead, MalformedResponse, ResponseParser
from nexus.http.sse import EventReader
from nexus.proxy.endpoints import ENDPOINTS
from nexus.server.request_head import HeadLimits, RequestHeadParser, parse_request_head

SECONDS = float(os.environ.get("NEXUS_FUZZ_SECONDS", "15"))
SEED = int(os.environ.get("NEXUS_FUZZ_SEED", "1"))
ROUND = 300
"""Examples between two looks at the clock."""
LIMITS = HeadLimits(fields=100, field=16380, line=8190)
GUNICORN = Config()
GUNICORN.set("limit_request_field_size", LIMITS.field)
GUNICORN.set("limit_request_line", LIMITS.line)
GUNICORN.set("limit_request_fields", LIMITS.fields)
GUNICORN.set("header_map", "dangerous")  # as the worker does


def fuzz(parser: str) -> str:
    """Check examples for as long as is set; its check says whether the parser took one, as
    enough of them must be."""
    strategy, check = PARSERS[parser]
    deadline, rounds, tried, taken = time.monotonic() + SECONDS, 0, 0, 0

    while time.monotonic() < deadline:

        @seed(SEED * 1_000_003 + rounds)
        @settings(
            max_examples=ROUND, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(strategy)
        def one_round(example: Any) -> None:
            nonlocal tried, taken
            tried += 1
            taken += check(example)

        one_round()
        rounds += 1
    assert taken > tried / 100, "too few examples are accepted to tell anything"
    return f"{parser}, seed {SEED}: {tried} examples in {rounds} rounds, {taken} of them accepted"


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[list[bytes]], tokens: list[bytes]) -> bytes:
    """Lines, some of them doubled, lost or changed places with, then some bytes replaced, put in
    or cut out."""
    lines = draw(whole)
    for kind, first, second in draw(
        st.lists(
            st.tuples(st.sampled_from("dls"), st.integers(0, 30), st.integers(0, 30)), max_size=2
        )
    ):
        at, other = first % len(lines), second % len(lines)
        if kind == "d":
            lines.insert(other, lines[at])
        elif kind == "s":
            lines[at], lines[other] = lines[other], lines[at]
        elif len(lines) > 1:
            del lines[at]
    data = b"".join(lines)
    edits = st.tuples(
        st.integers(0, 10_000), st.integers(0, 3), st.sampled_from(tokens) | st.binary(max_size=3)
    )
    for place, gone, put in draw(st.lists(edits, max_size=3)):
        at = place % (len(data) + 1)
        data = data[:at] + put + data[at + gone :]
    return data


def lines_of(
    first: list[bytes], fields: list[bytes], last: list[bytes]
) -> st.SearchStrategy[list[bytes]]:
    """A first line, some fields, an empty line, and what follows."""
    return st.builds(
        lambda begin, between, end: [begin, *between, b"\r\n", end],
        st.sampled_from(first),
        st.lists(st.sampled_from(fields), min_size=1, max_size=6),
        st.sampled_from(last),
    )


TOKENS = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\0",
    b"\t",
    b" ",
    b":",
    b",",
    b";",
    b"0",
    b"9",
    b"-",
    b"+",
    b"_",
    b"\x0b",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"chunked",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"\r\n ",
    b"0\r\n\r\n",
    b"3\r\nabc\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
]

REQUESTS = lines_of(
    [b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"] * 7
    + [
        b"POST /v1/chat/completions HTTP/1.1\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\n",
        b"POST /v1/completions?a=b#c HTTP/1.1\r\n",
        b"GET /v1/models HTTP/1.1\r\n",
    ],
    [
        b"Host: a\r\n",
        b"Content-Length: 3\r\n",
        b"content-length:\t3 \r\n",
        b"Content-Length: 03\r\n",
        b"Content-Length: 0\r\n",
        b"Connection: close\r\n",
        b"Connection: Keep-Alive\r\n",
        b"X-A: b\r\n",
        b"X-A: c\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"X-Forwarded-Proto: https\r\n",
        b"Authorization: Bearer x\r\n",
        b"Content-Type: application/json\r\n",
        b"X_A: b\r\n",
        b"Cookie: a=b; c\r\n",
        *[b"X-%d: \t%d \r\n" % (n, n) for n in range(8)],
    ],
    [b"abc", b"abcPOST /next HTTP/1.1\r\nHost: b\r\n\r\n", b"a", b""],
)


HEADS = RequestHeadParser(LIMITS)


def same_as_gunicorn(data: bytes) -> bool:
    """What the fast path takes gunicorn takes, with the same parts and the same bytes left,
    whichever head came before."""
    plain = parse_request_head(data, LIMITS)
    assert HEADS.parse(data) == plain
    assert HEADS.parse(data) == plain
    if plain is None:
        return False
    parser = get_parser(GUNICORN, iter([data]), ("127.0.0.1", 1))
    request = next(parser)
    path, deployment = ENDPOINTS.canonical(request.path)  # damage may leave out /v1
    assert (request.method, path, request.query) == ("POST", plain.target.endpoint.path, "")
    assert deployment == plain.target.deployment
    assert request.version == (1, 1)
    headers = [
        (name.lower(), value) for name, value in request.headers if name.lower() != "content-length"
    ]
    assert headers == plain.headers.pairs
    assert request.body.read() == data[plain.end : plain.end + plain.length]
    assert request.should_close() == (not plain.keep_alive)
    assert bytes(parser.unreader.take_buffered()) == data[plain.end + plain.length :]
    return True


ANSWERS = lines_of(
    [b"HTTP/1.1 200 OK\r\n"] * 5
    + [
        b"HTTP/1.1 503 No\r\n",
        b"HTTP/1.1 204 None\r\n",
        b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 200 OK\r\n",
    ],
    [
        b"Content-Length: 5\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length:5 \r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: Chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked\t\r\n",
        b"Transfer-Encoding: chunked \r\n",
        b"Connection: X, Keep-Alive\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"Connection: Keep-Alive, x\r\n",
        b"Content-Type: a/b\r\n",
        b"Proxy-Connection: close\r\n",
        b"X: \t y \r\n",
        b"Set-Cookie: a\r\n",
        b"Upgrade: h2c\r\n",
        b"Trailer: T\r\n",
        b"X:\r\n",
    ],
    [
        b"hello",
        b"",
        b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        b"3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\nT: x\r\n\r\n",
        b"005\r\nhello\r\n0\r\n\r\n",
    ],
)


class LongWay(ResponseParser):
    """Without its short paths: the parser reads everything."""

    def _read_simple(self, data: bytes) -> bool:
        return False

    def whole_chunk(self, data: bytes) -> bytes | None:
        return None


CandidateReport = tuple[Any, ...] | str


def verdict(reader: ResponseParser, pieces: list[bytes]) -> CandidateReport:
    """What the response is to whoever reads it up to its end, the backend's close included."""
    body = b""
    try:
        for number, piece in enumerate(pieces):
            reader.feed(piece)
            body += reader.body()
            if reader.complete:
                # Empty lines after a response are nothing to the parser, where they come with it.
                left = b"".join(pieces[number + 1 :]).lstrip(b"\r\n")
                return (reader.status, reader.headers, body, reader.reusable, left)
        reader.feed(b"")
    except MalformedResponse:
        return "refused"
    return (reader.status, reader.headers, body, reader.complete, reader.reusable, "closed")


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % len(data) for place in at if data} | {0, len(data)})
    return [data[begin:end] for begin, end in pairwise(places)]


LAST: list[CachedResponseHead] = []


def same_in_pieces(example: tuple[bytes, list[int]]) -> bool:
    """What is taken in one piece is taken in any, by the short paths and by the parser, with the
    same result."""
    data, at = example
    before = ResponseParser()
    whole = verdict(before, [data] if data else [])
    for plain in (*LAST, before.cached_head):  # whichever head came before
        assert verdict(ResponseParser(plain), [data] if data else []) == whole
    if before.cached_head is not None:
        LAST[:] = [before.cached_head]
    assert verdict(LongWay(), [data] if data else []) == whole
    for pieces in (cut(data, at), [data[n : n + 1] for n in range(len(data))]):
        found = verdict(ResponseParser(), pieces)
        if whole == "refused":
            # What follows a response is refused with it where it comes at once, and left unread
            # where it comes after.
            assert found == "refused" or (found[-1] not in ("closed", b""))
        else:
            assert found == whole
        assert verdict(LongWay(), pieces) == found
    return whole != "refused"


EVENTS = st.lists(
    st.sampled_from(
        [
            b"data: x",
            b"data:y",
            b"data",
            b": c",
            b"event: error",
            b"id: 1",
            b"data: \xc3\xa9",
            b"\xef\xbb\xbf",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"\r\n\r\n",
            b"\r\r",
            b"data: [DONE]\n\n",
        ]
    ),
    min_size=1,
    max_size=12,
)


class WithoutShortcut(EventReader):
    """A reader without the shortcut for whole events."""

    def feed(self, piece: bytes) -> list[Any]:
        return self._split(piece)


def events_of(reader: EventReader, pieces: list[bytes]) -> list[tuple[bytes | None, bytes]]:
    events = [event for piece in pieces for event in reader.feed(piece)]
    if (rest := reader.rest()) is not None:
        events.append(rest)
    assert b"".join(event.raw for event in events) == b"".join(pieces), "bytes are lost or doubled"
    return [(event.data, event.kind) for event in events if not event.tail]


def same_events(example: tuple[bytes, list[int]]) -> bool:
    data, at = example
    whole = events_of(EventReader(), [data])
    for pieces in ([data], cut(data, at), [data[n : n + 1] for n in range(len(data))]):
        assert events_of(EventReader(), pieces) == whole
        assert events_of(WithoutShortcut(), pieces) == whole
    return any(found is not None for found, _ in whole)


CHUNKS = st.lists(
    st.sampled_from(
        [
            b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n',
            b'data:{"choices":[{"index":1,"delta":{"thinking":"x"}}]}\r\n\r\n',
            b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
            b'"timings":{"predicted_n":3}}\r\r',
            b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
            b'data: {"choices":[{"index":0,"delta":{}}],"usage":{"completion_tokens":2},"x":NaN}\n'
            b"\n",
            b'data: {"choices":[],"usage":{"completion_tokens":2},"timings":{"cache_n":1}}\n\n',
            b'data: {"error":{"message":"no","code":"500"}}\n\n',
            b'event: error\ndata: {"message":"\\ud83d"}\n\n',
            b":\n\n",
            b"event: ping\ndata: {}\n\n",
            b"\xef\xbb\xbf",
            b"data: [DONE]\n\n",
        ]
    ),
    min_size=1,
    max_size=8,
)


def facts_of(pieces: list[bytes], *, hide_usage: bool) -> tuple[Any, ...]:
    """What a client gets of a stream, up to its end, and what the metrics say of it."""
    stream = openai.open_stream(clock=lambda: 1.0, hide_usage=hide_usage)
    shown = b""
    for piece in pieces:
        shown += stream.feed(piece)
        if stream.done:
            shown = shown.rstrip(b"\n")  # that of a CRLF may come later
            break
    shown += stream.end()
    return (
        shown,
        stream.usage,
        stream.error,
        stream.content,
        stream.done,
        stream.finished,
        stream.events,
        stream.counted_tokens(),
        stream.first_token_at,
    )


def same_stream(example: tuple[bytes, list[int]]) -> bool:
    """A stream comes to the same in whatever pieces it comes, and goes on to the byte if nothing
    is hidden."""
    data, at = example
    for hide_usage in (False, True):
        whole = facts_of([data], hide_usage=hide_usage)
        ended = whole[4]
        assert hide_usage or (data.startswith(whole[0]) if ended else whole[0] == data)
        for pieces in (cut(data, at), [data[n : n + 1] for n in range(len(data))]):
            assert facts_of(pieces, hide_usage=hide_usage) == whole
    return bool(whole[-1])


BODIES = st.lists(
    st.sampled_from(
        [
            b'"model":"m"',
            b'"model":"n"',
            b'"stream":true',
            b'"stream":false',
            b'"messages":[{"role":"user","content":"hi"}]',
            b'"tools":[{}]',
            b'"response_format":{"type":"json_object"}',
            b'"x":[1,{"a":-1.5e3}]',
            b'"y":"\\u00e9\\n"',
            b'"\\u006dodel":"o"',
            b'"messages":[{"content":[{"type":"image_url"}]}]',
            b'"prompt":"p"',
        ]
    ),
    min_size=2,
    max_size=7,
).map(
    lambda fields: [b"{", b'"model":"m","messages":[{}]', *[b"," + field for field in fields], b"}"]
)
JSON = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\\",
    b"null",
    b"true",
    b"0",
    b"-",
    b"1e9",
    b" ",
    b"\n",
    b"\0",
    b"\xff",
    b"\\ud800",
    b"NaN",
    b"-Infinity",
    b"\xef\xbb\xbf",
]


CHAT = RequestForm(prompts=(PromptField(name="messages", messages=True),), task="chat")


def same_as_json(data: bytes) -> bool:
    """What routing takes is JSON, with the same model and the same wish for a stream."""
    try:
        ask = openai.parse_request(data, CHAT)
    except InvalidBody:
        return False
    fields = json.loads(data.decode("utf-8-sig", "surrogatepass"))
    assert (ask.model, ask.stream) == (fields["model"], bool(fields.get("stream")))
    assert isinstance(fields["messages"], list)
    changed = json.loads(openai.replace_model(data, "other").decode("utf-8-sig", "surrogatepass"))
    assert json.dumps(changed) == json.dumps(
        {**fields, "model": "other"}
    )  # NaN does not equal itself
    return True


PARSERS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], bool]]] = {
    "request heads": (damaged(REQUESTS, TOKENS), same_as_gunicorn),
    "answers": (
        st.tuples(damaged(ANSWERS, TOKENS), st.lists(st.integers(0, 500), max_size=5)),
        same_in_pieces,
    ),
    "events": (
        st.tuples(damaged(EVENTS, TOKENS), st.lists(st.integers(0, 200), max_size=5)),
        same_events,
    ),
    "streams": (
        st.tuples(damaged(CHUNKS, TOKENS + JSON), st.lists(st.integers(0, 900), max_size=6)),
        same_stream,
    ),
    "bodies": (damaged(BODIES, JSON), same_as_json),
}


def test_parsers_under_damaged_bytes():
    """Two at a time, each in a process of its own."""
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        for told in pool.map(fuzz, PARSERS):
            print(told)


@pytest.mark.parametrize("check", [same_as_gunicorn, same_as_json])
def test_checks_take_what_is_well_formed(check):
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    assert check(request if check is same_as_gunicorn else b'{"model":"m","messages":[{}]}')
