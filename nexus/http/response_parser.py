"""Parses one HTTP/1.1 response. llhttp (httptools) reads it, and its framing is checked here.

A response is refused if two readers could disagree about where it ends: a Content-Length that is
repeated or beside a Transfer-Encoding, a coding other than `chunked`, a head without bounds
(RFC 9112, section 6).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from nexus.http.head_cache import HeadCache
from nexus.http.headers import Field, response_headers, simple_fields

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
_MAX_SIMPLE_HEAD_BYTES = 8 * 1024
_MAX_LENGTH_DIGITS = 15
_MAX_CHUNK_LINE_BYTES = 10
"""Bytes in which the end of a chunk's size is searched."""
_NOT_SIMPLE = frozenset({"transfer-encoding", "upgrade", "proxy-connection"})
_STATUS_LINE = re.compile(r"HTTP/1\.1 ([2-5]\d\d) [\x20-\x7e]*").fullmatch


class MalformedResponse(Exception):
    """The bytes are not an HTTP response that can be trusted."""


class State(Enum):
    """What a parser has read."""

    START = "nothing"
    HEAD = "a part of the head"
    BODY = "the head, and perhaps a part of the body"
    BETWEEN_CHUNKS = "whole chunks, and nothing of the next one"
    COMPLETE = "everything"


# Looked up as globals: an enum's member costs twice as much, once for each event of a stream.
_START, _HEAD, _BODY, _BETWEEN_CHUNKS, _COMPLETE = State


class CachedResponseHead(msgspec.Struct, frozen=True):
    """A simple response head, without its Content-Length.

    Attributes:
        cache: Recognizes the head's bytes.
        headers: Names, in lower case, and values.
        fields: The same, by name.
        for_client: The headers that the client gets.
    """

    cache: HeadCache
    status: int
    headers: list[Field]
    fields: dict[str, str]
    for_client: list[Field]


@lru_cache(maxsize=64)
def _simple_status(line: str) -> int:
    """The status of a status line; 0 if it is not simple, or if the response has no body."""
    match = _STATUS_LINE(line)
    return int(match[1]) if match is not None and match[1] not in ("204", "304") else 0


def _parse_simple_head(data: bytes) -> CachedResponseHead | None:
    """The head that `data` starts with; None if it is incomplete or not simple.

    Simple means: printable ASCII, no header twice, a Content-Length, and nothing that changes what
    follows the head.
    """
    end = data.find(b"\r\n\r\n", 0, _MAX_SIMPLE_HEAD_BYTES)
    if end < 0:
        return None
    lines = data[:end].decode("latin-1").split("\r\n")
    status, headers = _simple_status(lines[0]), simple_fields(lines)
    if not status or headers is None:
        return None
    fields = dict(headers)
    length = fields.get("content-length", "")
    if (
        len(fields) != len(headers)
        or len(fields) > MAX_HEADERS
        or not _NOT_SIMPLE.isdisjoint(fields)
        or not length.isdigit()
        or len(length) > _MAX_LENGTH_DIGITS
        or fields.get("connection", "keep-alive").lower() != "keep-alive"
    ):
        return None
    cache = HeadCache.of(data[: end + 4])
    if cache is None:
        return None
    headers.remove(("content-length", fields.pop("content-length")))
    return CachedResponseHead(cache, status, headers, fields, response_headers(headers))


@lru_cache(maxsize=4096)
def _chunk_size(digits: bytes) -> int:
    """The size of a chunk; 0 for anything but hexadecimal digits, of which `int` accepts more."""
    if not digits.isalnum() or b"x" in digits or b"X" in digits:
        return 0
    try:
        return int(digits, 16)
    except ValueError:
        return 0


def framing_fault(status: int, lengths: Sequence[str], codings: Sequence[str]) -> str | None:
    """Why the end of a response is in doubt; None if it is not.

    `lengths` and `codings` are the values of its Content-Length and Transfer-Encoding headers.
    llhttp accepts more than one reader would (RFC 9112, section 6.3).
    """
    if len(lengths) > 1:
        return "it gives its length more than once"
    if lengths and codings:
        return "it gives a length beside a transfer coding"
    # Not stripped: llhttp does not take a tab behind the coding for white space.
    if codings and [coding.lower() for coding in codings] != ["chunked"]:
        return f"its transfer coding {list(codings)} is not supported"
    return "it switches protocols" if status == 101 else None


class ResponseParser:
    """Parses the bytes of one response, in pieces of any size.

    Attributes:
        state: What was read so far.
        status: The status, once the head is complete.
        headers: Names, in lower case, and values, without Content-Length.
        cached_head: The last simple head of this connection, for the next response's parser.
    """

    state = _START
    status = 0
    _fault: str | None = None
    _framing_bytes = 0
    """Bytes since the last ones of the body: a head, a chunk's extensions, trailers, which llhttp
    keeps."""
    _until_close = False
    _chunk_ended = False
    _keep_alive = False
    _parser: HttpResponseParser | None = None

    def __init__(self, cached_head: CachedResponseHead | None = None) -> None:
        """`cached_head` is that of the previous response on the connection."""
        self.cached_head = cached_head
        self.headers: list[Field] = []
        self._fields: dict[str, str] = {}
        self._pieces: list[bytes] = []

    @property
    def head_complete(self) -> bool:
        return self.state is not _START and self.state is not _HEAD

    @property
    def complete(self) -> bool:
        return self.state is _COMPLETE

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request after this response."""
        return self.state is _COMPLETE and self._keep_alive and self._fault is None

    @property
    def overrun(self) -> bool:
        """Whether bytes came after the end of the response."""
        return self.state is _COMPLETE and self._fault is not None

    def feed(self, data: bytes) -> None:
        """Parse more bytes; empty `data` means that the backend closed.

        Raises `MalformedResponse`.
        """
        if not data:
            if self._until_close and self.head_complete:
                self.state = _COMPLETE
        elif self.state is _BETWEEN_CHUNKS and (piece := self.whole_chunk(data)) is not None:
            self._pieces.append(piece)
        elif self.state is not _START or not self._read_simple(data):
            self._parse(data)

    def whole_chunk(self, data: bytes) -> bytes | None:
        """The content of `data` if it is exactly one chunk, as nearly every event of a stream is.

        llhttp is not called. It waits for the start of a chunk before and after.
        """
        if self.state is not _BETWEEN_CHUNKS:
            return None
        end = data.find(b"\r\n", 1, _MAX_CHUNK_LINE_BYTES)
        if end < 1:
            return None
        size = _chunk_size(data[:end])
        if not size or len(data) != end + size + 4 or data[-2:] != b"\r\n":
            return None
        return data[end + 2 : -2]

    def _read_simple(self, data: bytes) -> bool:
        """Read a response that came whole and has a simple head; False if this is not one.

        Most responses are, and this costs a fraction of what llhttp costs.
        """
        head = self.cached_head
        match = head.cache.match(data) if head is not None else None
        if match is None and (head := _parse_simple_head(data)) is not None:
            match = head.cache.match(data)
        if head is None or match is None:
            return False
        length, body_start = match
        if length != len(data) - body_start:
            return False
        self.cached_head = head
        self.status, self.headers, self._fields = head.status, head.headers, head.fields
        self.state, self._keep_alive = _COMPLETE, True
        if length:
            self._pieces.append(data[body_start:])
        return True

    def _parse(self, data: bytes) -> None:
        if self.state is _START:
            self.state, self._parser = _HEAD, HttpResponseParser(self)
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._fault = self._fault or str(error)
            raise MalformedResponse(self._fault) from error
        if self._fault:
            raise MalformedResponse(self._fault)
        self._framing_bytes = 0 if self._pieces else self._framing_bytes + len(data)
        if self._framing_bytes > MAX_HEAD_BYTES and self.state is not _COMPLETE:
            part = "head" if self.state is _HEAD else "framing"
            raise MalformedResponse(f"its {part} is over {MAX_HEAD_BYTES} bytes")
        if self.state is _BODY or self.state is _BETWEEN_CHUNKS:
            # llhttp reports the end of a chunk, but not a part of the next one's size.
            between = self._chunk_ended and data.endswith(b"\r\n")
            self.state = _BETWEEN_CHUNKS if between else _BODY

    def body(self) -> bytes:
        """The bytes of the body that came since the last call."""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        return data

    def unread(self, data: bytes) -> None:
        """Return bytes that `body` gave; the next call gives them again."""
        if data:
            self._pieces.insert(0, data)

    def client_headers(self) -> list[Field]:
        """The headers that the client gets."""
        head = self.cached_head
        if head is not None and head.headers is self.headers:
            return head.for_client
        return response_headers(self.headers)

    def header(self, name: str) -> str | None:
        """The first value of a header; its name is in lower case."""
        return self._fields.get(name)

    # Callbacks of llhttp. An exception would reach `_parse` wrapped, so faults are recorded.

    def on_message_begin(self) -> None:
        if self.state is _COMPLETE:
            self._fault = "bytes follow the end of the response"

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.state is not _HEAD:
            return  # A trailer: nothing here depends on trailers.
        self.headers.append((name.decode("latin-1").lower(), value.decode("latin-1").rstrip(" ")))
        if len(self.headers) > MAX_HEADERS:
            self._fault = f"it has over {MAX_HEADERS} headers"

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self.headers = []  # An interim response; the final one follows (RFC 9110, 15.2).
            return
        lengths = [value for name, value in self.headers if name == "content-length"]
        codings = [value for name, value in self.headers if name == "transfer-encoding"]
        self._fault = self._fault or framing_fault(status, lengths, codings)
        headers = [(name, value.strip()) for name, value in self.headers]
        self.status, self._fields = status, dict(reversed(headers))
        self.headers = [entry for entry in headers if entry[0] != "content-length"]
        self._until_close = not lengths and not codings and status not in (204, 304)
        self.state = _BODY

    def on_chunk_header(self) -> None:
        self._chunk_ended = False

    def on_chunk_complete(self) -> None:
        self._chunk_ended = True

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self.state is _HEAD:
            return  # An interim response.
        self.state = _COMPLETE
        assert self._parser is not None
        # Another reader of HTTP/1.0 knows no chunks (RFC 9112, section 6.1).
        known = self._parser.get_http_version() != "1.0" or self.header("transfer-encoding") is None
        # llhttp forgets it after this call.
        self._keep_alive = (
            known and not self._until_close and bool(self._parser.should_keep_alive())
        )
