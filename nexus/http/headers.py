"""Which headers cross the gateway, in either direction."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from email.utils import parsedate_to_datetime
from functools import lru_cache

import msgspec

from nexus.http.credentials import CREDENTIALS

Field = tuple[str, str]
"""A header's name, in lower case, and its value."""

HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""RFC 9110, section 7.6.1, and what older software sends."""
BROWSER = frozenset({"origin", "sec-fetch-site"})
"""Headers by which a browser says from which page a request comes."""
_UNUSUAL = BROWSER | {"content-encoding"}
_NOT_FOR_BACKENDS = (
    HOP_BY_HOP | CREDENTIALS | {
        "host", "content-length", "content-encoding", "accept-encoding", "expect", "cookie",
        "x-request-id", "origin", "referer", "forwarded", "x-real-ip", "true-client-ip",
        "cf-connecting-ip",
    }
)  # fmt: skip
_NOT_FOR_BACKENDS_PREFIXES = ("x-nexus-", "x-forwarded-", "sec-", "access-control-")
"""Our own headers, and those that identify the client and its address."""
_NOT_FOR_CLIENTS = HOP_BY_HOP | {
    "content-length", "server", "date", "set-cookie", "alt-svc", "strict-transport-security",
    "x-request-id",
}  # fmt: skip
_NOT_FOR_CLIENTS_PREFIXES = ("x-nexus-", "access-control-")
"""Our own headers, and permissions for browsers, which only the gateway gives."""
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")
_SIMPLE_FIELD = re.compile(r"([A-Za-z0-9_-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?) *")


@lru_cache(maxsize=512)
def _simple_field(line: str) -> Field | None:
    """Parse a header line; None if it is not simple: printable ASCII, with a value.

    Cached, because most header lines repeat those of earlier messages.
    """
    match = _SIMPLE_FIELD.fullmatch(line)
    return (match[1].lower(), match[2]) if match is not None else None


def simple_fields(lines: Sequence[str]) -> list[Field] | None:
    """The headers of a head, whose first line is not one; None if one of them is not simple."""
    fields = [field for line in lines[1:] if (field := _simple_field(line)) is not None]
    return fields if len(fields) == len(lines) - 1 else None


class RequestHeaders(msgspec.Struct):
    """A request's headers without Content-Length. Requests with the same headers share one.

    Attributes:
        pairs: Names, in lower case, and values, in their order.
        first: The first value of each name.
        credentials: Whether one of them is a key of the client's.
        unusual: Whether one needs an extra check: an origin, or a coding.
        identified: Who sends requests with these headers, and by which keys that was found.
    """

    pairs: list[Field]
    first: dict[str, str]
    credentials: bool
    unusual: bool
    identified: tuple[object, object] | None = None
    _for_backend: dict[bool, str] = {}

    @classmethod
    def of(cls, pairs: list[Field]) -> RequestHeaders:
        first = dict(reversed(pairs))
        return cls(pairs, first, not CREDENTIALS.isdisjoint(first), not _UNUSUAL.isdisjoint(first))

    def hiding(self, names: frozenset[str]) -> RequestHeaders:
        """The same headers, of which backends do not get those of these names."""
        if names.isdisjoint(self.first):
            return self
        pairs = [field for field in self.pairs if field[0] not in names]
        return RequestHeaders(pairs, self.first, self.credentials, self.unusual)

    def for_backend(self, *, client_keys: bool) -> str:
        """The header lines that are sent to a backend, with the client's keys or without."""
        lines = self._for_backend.get(client_keys)
        if lines is None:
            lines = self._for_backend[client_keys] = _lines_for_backend(self.pairs, client_keys)
        return lines


def is_for_backends(name: str) -> bool:
    """Whether backends get a client's header of this name, given in lower case.

    CGI has one name for `x_real_ip` and `x-real-ip`, so a backend may take one for the other.
    """
    return (
        name not in _NOT_FOR_BACKENDS
        and not name.startswith(_NOT_FOR_BACKENDS_PREFIXES)
        and "_" not in name
    )


def _lines_for_backend(headers: Sequence[Field], client_keys: bool) -> str:
    dropped = named_by_connection(headers)
    lines = [_line_for_backend(entry) for entry in headers if entry[0] not in dropped]
    if client_keys:
        lines += [
            f"{name}: {value}\r\n"
            for name, value in headers
            if name in CREDENTIALS and name not in dropped and _is_safe(value)
        ]
    return "".join(lines)


@lru_cache(maxsize=512)
def _line_for_backend(entry: Field) -> str:
    """A client's header as a line; empty if it is not for backends. Credentials never are here."""
    name, value = entry
    forwarded = is_for_backends(name) and _NAME.fullmatch(name) is not None and _is_safe(value)
    return f"{name}: {value}\r\n" if forwarded else ""


def has_passed_before(headers: RequestHeaders, via: str) -> bool:
    """Whether the request has passed the gateway of this name (RFC 9110, section 7.6.3)."""
    return "via" in headers.first and any(
        element.split()[1:2] == [via]
        for name, value in headers.pairs
        if name == "via"
        for element in value.split(",")
    )


def response_headers(headers: Sequence[Field]) -> list[Field]:
    """A backend's end-to-end headers, as the client gets them."""
    dropped = named_by_connection(headers)
    return [entry for entry in headers if _is_for_client(entry) and entry[0] not in dropped]


@lru_cache(maxsize=512)
def _is_for_client(entry: Field) -> bool:
    name, value = entry
    return (
        name not in _NOT_FOR_CLIENTS
        and not name.startswith(_NOT_FOR_CLIENTS_PREFIXES)
        and _NAME.fullmatch(name) is not None
        and _is_safe(value)
    )


def _is_safe(value: str) -> bool:
    """Whether a header can have this value. The first test is cheap and nearly always true."""
    return (value.isascii() and value.isprintable()) or _VALUE.fullmatch(value) is not None


def named_by_connection(headers: Iterable[Field]) -> set[str]:
    """Names in the Connection headers: fields for the next hop only (RFC 9110, section 7.6.1)."""
    return {
        token.strip()
        for name, value in headers
        if name == "connection"
        for token in value.lower().split(",")
    }


def retry_after_s(
    headers: Iterable[Field], *, now: Callable[[], float] = time.time
) -> float | None:
    """Seconds until a response asks to be retried; None if it does not, or in an unknown form.

    `Retry-After` is a number of seconds or a date (RFC 9110, section 10.2.3). OpenAI's
    `retry-after-ms` is finer and takes precedence.
    """
    fields = dict(headers)
    value = fields.get("retry-after", "")
    with contextlib.suppress(ValueError):
        if math.isfinite(seconds := float(fields.get("retry-after-ms", "")) / 1000):
            return max(0.0, seconds)
    try:
        if value.replace(".", "", 1).isdigit():
            return seconds if math.isfinite(seconds := float(value)) else None
        return max(0.0, parsedate_to_datetime(value).timestamp() - now())
    except (ValueError, OverflowError):
        return None


@lru_cache(maxsize=1024)
def header_text(text: str) -> str:
    """A name as a header's value; each character that a header cannot carry becomes `?`."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)
