"""Parses the heads of requests that are eligible for the fast path.

Eligible is narrower than what HTTP allows, on purpose: the fast path must never have to decide
where two readers could disagree. gunicorn's parser reads every other request.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import msgspec
from gunicorn.config import Config
from gunicorn.glogging import Logger

from nexus.http.credentials import CREDENTIALS
from nexus.http.head_cache import HeadCache
from nexus.http.headers import RequestHeaders, simple_fields
from nexus.proxy.endpoint_table import Target
from nexus.proxy.endpoints import ENDPOINTS

_SINGLETONS = CREDENTIALS | {
    "host", "content-length", "content-type", "content-encoding", "connection", "x-request-id",
    "origin", "sec-fetch-site", "expect",
}  # fmt: skip
"""Headers that decide something here. A request that repeats one is not eligible."""
_NOT_ELIGIBLE = frozenset(
    {"transfer-encoding", "upgrade", "te", "trailer", "proxy-connection", "keep-alive"}
)
_CONTINUE = "100-continue"
_MAX_CACHED_BYTES = 8 * 1024
"""A longer head is not cached: thousands of connections may be idle, each with its own cache."""
_MAX_LENGTH_DIGITS = 12
_WITHOUT_FAST_PATH = "NEXUS_WITHOUT_SHORT_WAY"
"""If this variable is set, every request goes through gunicorn's parser and Flask."""


class RequestHead(msgspec.Struct):
    """The head of an eligible request.

    Attributes:
        target: The endpoint that its path names.
        headers: All headers but Content-Length.
        length: The body's length in bytes.
        end: Where the head ends and the body starts.
        keep_alive: The client keeps the connection open.
        expects: The client waits for `100 Continue` before it sends the body.
    """

    target: Target
    headers: RequestHeaders
    length: int
    end: int
    keep_alive: bool
    expects: bool


class HeadLimits(NamedTuple):
    """gunicorn's limits: how many headers, and the bytes of one and of the first line."""

    fields: int
    field: int
    line: int


def fast_path_limits(settings: Config, gunicorn_log: Logger) -> HeadLimits | None:
    """The limits of the fast path; None if every request must go through gunicorn.

    That is so if gunicorn is to log, report to statsd, or call a hook for each, or if connections
    carry more than plain HTTP.
    """
    default = Config()
    if (
        settings.is_ssl
        or settings.proxy_protocol != "off"
        or settings.header_map == "refuse"  # underscores, which the fast path takes
        or gunicorn_log.access_log_enabled
        or type(gunicorn_log) is not Logger  # as that for statsd, which counts requests
        or settings.pre_request is not default.pre_request
        or settings.post_request is not default.post_request
        or os.environ.get(_WITHOUT_FAST_PATH)
    ):
        return None
    return HeadLimits(
        fields=settings.limit_request_fields,
        field=settings.limit_request_field_size,
        line=settings.limit_request_line,
    )


def parse_request_head(data: bytes, limits: HeadLimits) -> RequestHead | None:
    """The head that `data` starts with; None if it is incomplete or not eligible."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    lines = data[:end].decode("latin-1").split("\r\n")
    target = ENDPOINTS.target_of(lines[0])
    if target is None or not _within(limits, lines, end):
        return None
    headers = simple_fields(lines)
    if headers is None:
        return None
    fields = dict(headers)
    if len(fields) != len(headers) and _ambiguous(headers):
        return None
    length = _body_length(fields)
    if length is None:
        return None
    others = RequestHeaders.of([field for field in headers if field[0] != "content-length"])
    keep_alive = fields.get("connection", "").lower() != "close"
    return RequestHead(target, others, length, end + 4, keep_alive, "expect" in fields)


def _within(limits: HeadLimits, lines: list[str], end: int) -> bool:
    return (
        len(lines[0]) <= limits.line
        and len(lines) - 1 <= limits.fields
        and (end <= limits.field or all(len(line) + 2 <= limits.field for line in lines))
    )


def _ambiguous(headers: list[tuple[str, str]]) -> bool:
    """Whether a header is repeated that must be given once (RFC 9110, section 5.3)."""
    names = [name for name, _ in headers]
    return any(
        names.count(name) > 1
        for name in names
        if name in _SINGLETONS or name.startswith("x-nexus-")
    )


def _body_length(fields: dict[str, str]) -> int | None:
    """The body's length; None if something else than Content-Length could frame the request."""
    length = fields.get("content-length", "")
    if (
        "host" not in fields
        or not length.isdigit()
        or len(length) > _MAX_LENGTH_DIGITS
        or fields.get("connection", "close").lower() not in ("keep-alive", "close")
        or not _NOT_ELIGIBLE.isdisjoint(fields)
        or fields.get("expect", _CONTINUE).lower() != _CONTINUE
    ):
        return None
    return int(length)


class RequestHeadParser:
    """Parses the heads of one connection, and caches the last one."""

    def __init__(self, limits: HeadLimits | None) -> None:
        """Without limits, no request is eligible."""
        self._limits = limits
        self._last: RequestHead | None = None
        self._cache: HeadCache | None = None

    def parse(self, data: bytes) -> RequestHead | None:
        """As `parse_request_head`. A head that differs from the last one only in Content-Length is
        served from the cache."""
        if self._cache is not None and (hit := self._cache.match(data)) is not None:
            length, end = hit
            last = self._last
            assert last is not None
            return RequestHead(
                last.target, last.headers, length, end, last.keep_alive, last.expects
            )
        head = parse_request_head(data, self._limits) if self._limits is not None else None
        self._last = self._cache = None
        # A reload may change custom endpoints.
        if head is not None and head.end <= _MAX_CACHED_BYTES and not head.target.endpoint.custom:
            self._last, self._cache = head, HeadCache.of(data[: head.end])
        return head
