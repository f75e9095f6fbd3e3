"""Reading the head of a plain request: one that leaves no question open. All others are gunicorn's to read.

What is plain is narrower than what HTTP allows, on purpose: the shorter a way is, the less it should have to judge.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from nexus.http.head_cache import HeadCache
from nexus.http.headers import RequestHeaders, plain_field
from nexus.proxy.endpoints import Target, target_of

_ONCE = (
    "host", "content-length", "content-type", "content-encoding", "authorization", "connection", "x-request-id",
    "origin", "sec-fetch-site", "expect",
)  # fmt: skip
_CONTINUE = "100-continue"
_REMEMBERED_BYTES = 8 * 1024
"""A longer head is not kept with its connection, of which there may be thousands that are idle."""
_NOT_PLAIN = frozenset(
    {"transfer-encoding", "upgrade", "te", "trailer", "proxy-connection", "keep-alive"}
)


class RequestHead(msgspec.Struct):
    """`headers` are without Content-Length; the body, of `length` bytes, begins at `end`. `expects`: the client waits
    for 100 before it sends the body."""

    target: Target
    headers: RequestHeaders
    length: int
    end: int
    keep_alive: bool
    expects: bool


class HeadLimits(NamedTuple):
    """gunicorn's limits for a head: how many fields, how long a field, how long the first line, in bytes."""

    fields: int
    field: int
    line: int


def parse_request_head(data: bytes, limits: HeadLimits) -> RequestHead | None:
    """The head that `data` begins with; None where it is not complete, or not plain."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    lines = data[:end].decode("latin-1").split("\r\n")
    target = target_of(lines[0])
    if target is None or len(lines[0]) > limits.line or len(lines) - 1 > limits.fields:
        return None
    if end > limits.field and any(len(line) + 2 > limits.field for line in lines):
        return None
    headers = [field for line in lines[1:] if (field := plain_field(line)) is not None]
    if len(headers) != len(lines) - 1:
        return None
    fields = dict(headers)
    if len(fields) != len(headers):
        names = [name for name, _ in headers]
        if any(names.count(name) > 1 for name in _ONCE):
            return None
    length, connection = fields.get("content-length", ""), fields.get("connection")
    if (
        "host" not in fields
        or not length.isdigit()
        or len(length) > 12
        or (connection is not None and connection.lower() not in ("keep-alive", "close"))
        or not _NOT_PLAIN.isdisjoint(fields)
        or fields.get("expect", _CONTINUE).lower() != _CONTINUE
    ):
        return None
    keep_alive = connection is None or connection.lower() != "close"
    others = RequestHeaders.of([field for field in headers if field[0] != "content-length"])
    return RequestHead(target, others, int(length), end + 4, keep_alive, "expect" in fields)


class RequestHeadParser:
    """Reads the heads of one connection."""

    def __init__(self, limits: HeadLimits | None) -> None:
        """Without limits, no head is plain."""
        self._limits = limits
        self._last: RequestHead | None = None
        self._repeated: HeadCache | None = None

    def read(self, data: bytes) -> RequestHead | None:
        """As `read_plain_head`; a head like the last one costs little."""
        if self._repeated is not None and (found := self._repeated.length_in(data)) is not None:
            length, end = found
            last = self._last
            assert last is not None
            return RequestHead(
                last.target, last.headers, length, end, last.keep_alive, last.expects
            )
        head = parse_request_head(data, self._limits) if self._limits is not None else None
        self._last = self._repeated = None
        if head is not None and head.end <= _REMEMBERED_BYTES:
            self._last, self._repeated = head, HeadCache.of(data[: head.end])
        return head
