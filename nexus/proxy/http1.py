"""Reading one HTTP/1.1 answer: parsed by llhttp (httptools), its framing checked by us.

Where two readers could disagree about where an answer ends, it is refused: a Content-Length given twice or beside a
Transfer-Encoding, a coding other than `chunked`, a head without bounds (RFC 9112, section 6).
"""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200


class MalformedAnswer(Exception):
    """The bytes are not an HTTP answer that can be trusted."""


class AnswerReader:
    """Takes the bytes of one answer in any pieces. `headers` have lower-case names; `body` yields what came so far."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.head_complete = False
        self.complete = False
        self._fault: str | None = None
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._until_close = False
        self._keep_alive = False
        self._parser = HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take more bytes; empty ones say that the backend closed. Raises `MalformedAnswer`."""
        if not data:
            if self.head_complete and self._until_close:
                self.complete = True
            return
        if not self.head_complete:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            raise MalformedAnswer(self._fault or str(error)) from error
        if self._fault:
            raise MalformedAnswer(self._fault)
        if not self.head_complete and self._head_bytes > MAX_HEAD_BYTES:
            raise MalformedAnswer(f"its head is over {MAX_HEAD_BYTES} bytes")

    def body(self) -> bytes:
        """The bytes of the body that came since the last call."""
        if len(self._pieces) == 1:
            data = self._pieces[0]
        else:
            data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request after this answer."""
        return self.complete and not self._until_close and self._fault is None and self._keep_alive

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    # What follows is called by the parser; an exception here would reach us wrapped, so faults are noted instead.

    def on_message_begin(self) -> None:
        if self.complete:
            self._fault = "bytes follow the end of the answer"

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_complete:
            return  # trailers; nothing of ours depends on them
        self.headers.append((name.decode("latin-1").lower(), value.decode("latin-1").strip()))
        if len(self.headers) > MAX_HEADERS:
            self._fault = f"it has over {MAX_HEADERS} headers"

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self.headers.clear()
            return
        self.status = status
        lengths = [value for key, value in self.headers if key == "content-length"]
        codings = [value.lower() for key, value in self.headers if key == "transfer-encoding"]
        if len(lengths) > 1:
            self._fault = "it gives its length more than once"
        elif lengths and codings:
            self._fault = "it gives a length beside a transfer coding"
        elif codings and codings != ["chunked"]:
            self._fault = f"its transfer coding {codings} is not understood"
        elif status == 101:
            self._fault = "it switches protocols"
        self._until_close = not lengths and not codings and status not in (204, 304)
        self.head_complete = True

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self.head_complete:
            self.complete = True
            self._keep_alive = bool(self._parser.should_keep_alive())  # the parser forgets it after this call
