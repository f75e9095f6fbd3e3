"""Reading one HTTP/1.1 answer: parsed by llhttp (httptools), its framing checked by us.

Where two readers could disagree about where an answer ends, it is refused: a Content-Length given twice or beside a
Transfer-Encoding, a coding other than `chunked`, a head without bounds (RFC 9112, section 6).
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from nexus.http.head_cache import HeadCache
from nexus.http.headers import response_headers, simple_field

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200


class MalformedResponse(Exception):
    """The bytes are not an HTTP answer that can be trusted."""


_STATUS_LINE = re.compile(r"HTTP/1\.1 ([2-5]\d\d) [\x20-\x7e]*").fullmatch
_NOT_PLAIN = frozenset({"transfer-encoding", "upgrade", "proxy-connection"})
_PLAIN_HEAD_BYTES = 8 * 1024
_LONGEST_SIZE = 10
"""Bytes of a chunk's size that are looked at, its line ending included."""


@lru_cache(maxsize=64)
def _plain_status(line: str) -> int:
    """The status that a plain status line tells; 0 for one that is not plain, or whose answer has no body."""
    found = _STATUS_LINE(line)
    return int(found[1]) if found is not None and found[1] not in ("204", "304") else 0


@lru_cache(maxsize=4096)
def _chunk_size(digits: bytes) -> int:
    """The size that a chunk's first line tells; 0 for what is not only digits: `int` takes more than HTTP does."""
    if not digits.isalnum() or b"x" in digits or b"X" in digits:
        return 0
    try:
        return int(digits, 16)
    except ValueError:
        return 0


class CachedResponseHead(msgspec.Struct, frozen=True):
    """The head of a plain answer, its length apart; `end_to_end`: those of its headers that the client gets."""

    repeated: HeadCache
    status: int
    headers: list[tuple[str, str]]
    fields: dict[str, str]
    end_to_end: list[tuple[str, str]]


def _plain_head(data: bytes) -> CachedResponseHead | None:
    """The head that `data` begins with; None where it is not complete, or not plain."""
    end = data.find(b"\r\n\r\n", 0, _PLAIN_HEAD_BYTES)
    if end < 0:
        return None
    lines = data[:end].decode("latin-1").split("\r\n")
    status = _plain_status(lines[0])
    headers = [field for line in lines[1:] if (field := simple_field(line)) is not None]
    fields = dict(headers)
    if (
        not status
        or len(fields) != len(lines) - 1
        or not _NOT_PLAIN.isdisjoint(fields)
        or len(fields) > MAX_HEADERS
    ):
        return None
    length, connection = fields.get("content-length", ""), fields.get("connection")
    if (
        not length.isdigit()
        or len(length) > 15
        or (connection is not None and connection.lower() != "keep-alive")
    ):
        return None
    repeated = HeadCache.of(data[: end + 4])
    if repeated is None:
        return None
    headers.remove(("content-length", fields.pop("content-length")))
    return CachedResponseHead(repeated, status, headers, fields, response_headers(headers))


class ResponseParser:
    """Takes the bytes of one answer in any pieces. `headers` have lower-case names, and are without Content-Length;
    `body` yields what came so far."""

    status = 0
    head_complete = False
    complete = False
    _fault: str | None = None
    _head_bytes = 0
    _until_close = False
    _between_chunks = False
    _chunk_ended = False
    _keep_alive = False
    _parser: HttpResponseParser | None = None

    def __init__(self, plain: CachedResponseHead | None = None) -> None:
        """`plain` is that of the answer before over the same connection: this one's may be like it."""
        self.plain = plain
        self.headers: list[tuple[str, str]] = []
        self._fields: dict[str, str] = {}
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Take more bytes; empty ones say that the backend closed. Raises `MalformedResponse`."""
        if not data:
            if self.head_complete and self._until_close:
                self.complete = True
            return
        if self._between_chunks and (piece := self.whole_chunk(data)) is not None:
            self._pieces.append(piece)
            return
        if not self.head_complete:
            if not self._head_bytes and self._read_plain(data):
                return
            self._head_bytes += len(data)
        if self._parser is None:
            self._parser = HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._fault = self._fault or str(error)
            raise MalformedResponse(self._fault) from error
        if self._fault:
            raise MalformedResponse(self._fault)
        # The parser tells when a chunk has ended, but not of the next one's size as long as that is not complete.
        self._between_chunks = self._chunk_ended and not self.complete and data.endswith(b"\r\n")
        if not self.head_complete and self._head_bytes > MAX_HEAD_BYTES:
            raise MalformedResponse(f"its head is over {MAX_HEAD_BYTES} bytes")

    def _read_plain(self, data: bytes) -> bool:
        """Read an answer that is here whole, with a plain head and its length given once; most are, and this is
        several times cheaper than the parser. Gives False, and has done nothing, for any other."""
        plain, found = self.plain, None
        if plain is not None:
            found = plain.repeated.match(data)
        if found is None and (plain := _plain_head(data)) is not None:
            found = plain.repeated.match(data)
        if plain is None or found is None or found[0] != len(data) - found[1]:
            return False
        self.plain = plain
        self.status, self.headers, self._fields = plain.status, plain.headers, plain.fields
        self.head_complete = self.complete = self._keep_alive = True
        if found[0]:
            self._pieces.append(data[found[1] :])
        return True

    def whole_chunk(self, data: bytes) -> bytes | None:
        """What is in a chunk that came alone and whole, as nearly every event of a stream does; None for anything else.

        The parser is not asked: it waits for the beginning of a chunk, and goes on to do so.
        """
        if not self._between_chunks:
            return None
        end = data.find(b"\r\n", 1, _LONGEST_SIZE)
        if end < 1:
            return None
        length = _chunk_size(data[:end])
        if not length or len(data) != end + length + 4 or data[-2:] != b"\r\n":
            return None
        return data[end + 2 : -2]

    def body(self) -> bytes:
        """The bytes of the body that came since the last call."""
        if len(self._pieces) == 1:
            data = self._pieces[0]
        else:
            data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    def unread(self, data: bytes) -> None:
        """Give bytes back that `body` gave."""
        if data:
            self._pieces.insert(0, data)

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request after this answer."""
        return self.complete and not self._until_close and self._fault is None and self._keep_alive

    @property
    def overrun(self) -> bool:
        """Whether bytes came after the end of the response."""
        return self.complete and self._fault is not None

    def end_to_end(self) -> list[tuple[str, str]]:
        """The headers that the client gets."""
        plain = self.plain
        return (
            plain.end_to_end
            if plain is not None and plain.headers is self.headers
            else response_headers(self.headers)
        )

    def header(self, name: str) -> str | None:
        """The value of a header by its name in lower case; of one that is given twice, the first."""
        return self._fields.get(name)

    # What follows is called by the parser; an exception here would reach us wrapped, so faults are noted instead.

    def on_message_begin(self) -> None:
        if self.complete:
            self._fault = "bytes follow the end of the answer"

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_complete:
            return  # trailers; nothing of ours depends on them
        self.headers.append((name.decode("latin-1").lower(), value.decode("latin-1").rstrip(" ")))
        if len(self.headers) > MAX_HEADERS:
            self._fault = f"it has over {MAX_HEADERS} headers"

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self.headers = []
            return
        lengths = [value for key, value in self.headers if key == "content-length"]
        codings = [value.lower() for key, value in self.headers if key == "transfer-encoding"]
        if len(lengths) > 1:
            self._fault = "it gives its length more than once"
        elif lengths and codings:
            self._fault = "it gives a length beside a transfer coding"
        elif codings and codings != ["chunked"]:  # nor is one with a tab at its end to the parser
            self._fault = f"its transfer coding {codings} is not understood"
        elif status == 101:
            self._fault = "it switches protocols"
        headers = [(name, value.strip()) for name, value in self.headers]
        self.status, self._fields = status, dict(reversed(headers))
        self.headers = [entry for entry in headers if entry[0] != "content-length"]
        self._until_close = not lengths and not codings and status not in (204, 304)
        self.head_complete = True

    def on_chunk_header(self) -> None:
        self._chunk_ended = False

    def on_chunk_complete(self) -> None:
        self._chunk_ended = True

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self.head_complete:
            self.complete = True
            assert self._parser is not None
            self._keep_alive = bool(
                self._parser.should_keep_alive()
            )  # the parser forgets it after this call
