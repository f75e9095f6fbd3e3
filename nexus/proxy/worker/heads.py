"""Reading the head of a plain request: one that leaves no question open. All others are gunicorn's to read.

What is plain is narrower than what HTTP allows, on purpose: the shorter a way is, the less it should have to judge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from nexus.proxy.engine import ENDPOINTS, Endpoint

_HEAD = re.compile(
    rb"POST ([\x21-\x7e]++) HTTP/1\.1\r\n"
    rb"((?:[A-Za-z0-9-]++:[ \t]*+[\x21-\x7e][\x20-\x7e]*+\r\n)++)\r\n"
)
_FIELDS = re.compile(r"([^:]+):[ \t]*([^\r]*[^\r \t])[ \t]*\r\n").findall
_ENDPOINTS = {endpoint.path.encode(): endpoint for endpoint in ENDPOINTS}
_ONCE = ("host", "content-length", "content-type", "authorization", "connection", "x-request-id")
_NOT_PLAIN = frozenset({"transfer-encoding", "expect", "upgrade", "te", "trailer", "proxy-connection", "keep-alive"})


class PlainHead(NamedTuple):
    """`headers` have lower-case names; the body, of `length` bytes, begins at `end`."""

    endpoint: Endpoint
    headers: list[tuple[str, str]]
    length: int
    end: int
    keep_alive: bool


class Limits(NamedTuple):
    """gunicorn's limits for a head: how many fields, how long a field, how long the first line, in bytes."""

    fields: int
    field: int
    line: int
    scheme_headers: Sequence[str] = ()


def read_plain_head(data: bytes, limits: Limits) -> PlainHead | None:
    """The head that `data` begins with; None where it is not complete, or not plain."""
    found = _HEAD.match(data)
    if found is None:
        return None
    endpoint = _ENDPOINTS.get(found[1])
    if endpoint is None:
        return None
    block = found[2].decode("ascii")
    headers = [(name.lower(), value) for name, value in _FIELDS(block)]
    if len(headers) > limits.fields or found.start(2) - 2 > limits.line:
        return None
    if len(block) > limits.field and any(len(line) + 2 > limits.field for line in block.split("\r\n")):
        return None
    fields = dict(headers)
    seen = fields.keys()
    if len(fields) != len(headers):
        names = [name for name, _ in headers]
        if any(names.count(name) > 1 for name in (*_ONCE, *limits.scheme_headers)):
            return None
    length, connection = fields.get("content-length", ""), fields.get("connection", "").lower()
    if (
        "host" not in fields
        or not length.isdigit()
        or len(length) > 12
        or connection not in ("", "keep-alive", "close")
        or not _NOT_PLAIN.isdisjoint(seen)
        or sum(name in seen for name in limits.scheme_headers) > 1
    ):
        return None
    return PlainHead(endpoint, headers, int(length), found.end(), connection != "close")
