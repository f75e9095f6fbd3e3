"""Which headers cross the gateway, in either direction."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from email.utils import parsedate_to_datetime
from functools import lru_cache

import msgspec

from nexus.backends.address import Address, forwards_authorization
from nexus.config import BackendConfig

HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
        "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""RFC 9110, section 7.6.1, and what older software sends."""

_NOT_SENT_ON = HOP_BY_HOP | {
    "host",
    "content-length",
    "accept-encoding",
    "authorization",
    "expect",
    "cookie",
    "x-request-id",
}
_NOT_GIVEN_BACK = HOP_BY_HOP | {
    "content-length",
    "server",
    "date",
    "set-cookie",
    "alt-svc",
    "strict-transport-security",
    "x-request-id",
}
_END = "\r\n"
_SAFE_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PLAIN_FIELD = re.compile(r"([A-Za-z0-9-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?) *")
_SAFE_VALUE = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")


@lru_cache(maxsize=512)
def plain_field(line: str) -> tuple[str, str] | None:
    """The name, in lower case, and the value of a line of a head; None where it is not plain: printable ASCII, with a
    value. Most lines of most heads are those of the head before, so each is taken apart once."""
    found = _PLAIN_FIELD.fullmatch(line)
    return (found[1].lower(), found[2]) if found is not None else None


class RequestHeaders(msgspec.Struct):
    """A request's headers but its Content-Length, in their order, with lower-case names. `first`: of each name the
    first. They are shared by all requests of a connection that have the same ones."""

    pairs: list[tuple[str, str]]
    first: dict[str, str]
    _sent_on: dict[bool, str]

    @classmethod
    def of(cls, pairs: list[tuple[str, str]]) -> RequestHeaders:
        return cls(pairs, dict(reversed(pairs)), {})

    def sent_on(self, *, authorization: bool) -> str:
        """The lines of those that are for a backend; the client's Authorization is one only where that is wanted."""
        lines = self._sent_on.get(authorization)
        if lines is None:
            lines = self._sent_on[authorization] = _sent_on(self.pairs, authorization=authorization)
        return lines


def request_head(
    headers: RequestHeaders,
    *,
    path: str,
    address: Address,
    config: BackendConfig,
    key: str | None,
    request_id: str,
    length: int,
) -> bytes:
    """The head of a request to a backend: the client's end-to-end headers, our own key, and no compression.

    The client's Authorization goes on only where the configuration lets it; a prefix of ours (`x-nexus-`) never does.
    """
    own_key = f"authorization: Bearer {key}\r\n" if key is not None else ""
    theirs = headers.sent_on(authorization=key is None and forwards_authorization(config))
    return (
        f"{_first_lines(address, path)}content-length: {length}\r\nx-request-id: {request_id}\r\n{own_key}{theirs}\r\n"
    ).encode("latin-1")


def _sent_on(headers: Sequence[tuple[str, str]], *, authorization: bool) -> str:
    lines = [_line_sent_on(entry) for entry in headers]
    if authorization:
        lines += [_line(entry) for entry in headers if entry[0] == "authorization" and _is_safe(entry[1])]
    return "".join(_less_named(headers, lines) if None in lines else lines)  # type: ignore[arg-type]


def _less_named(headers: Sequence[tuple[str, str]], lines: list[str | None]) -> list[str | None]:
    """The lines without those that the client's Connection header names, which are meant for us alone."""
    alone = {"connection"}
    for name, value in headers:
        if name == "connection":
            alone.update(token.strip() for token in value.lower().split(","))
    return [line for line in lines if line is not None and line.partition(":")[0] not in alone]


@lru_cache(maxsize=512)
def _line_sent_on(entry: tuple[str, str]) -> str | None:
    """A client's header as a line for the backend, empty where it is not for it; None where it names others that are
    not. An Authorization is looked at apart."""
    name, value = entry
    if name == "connection" and value.lower() not in ("keep-alive", "close"):
        return None
    return _line(entry) if _goes_on(name) and _is_safe(value) else ""


def _line(entry: tuple[str, str]) -> str:
    return f"{entry[0]}: {entry[1]}{_END}"


@lru_cache(maxsize=1024)
def _first_lines(address: Address, path: str) -> str:
    return f"POST {address.prefix}{path} HTTP/1.1\r\nhost: {address.host_header}\r\naccept-encoding: identity\r\n"


def _goes_on(name: str) -> bool:
    """Whether a client's header (its name in lower case) is for the backend."""
    return name not in _NOT_SENT_ON and not name.startswith("x-nexus-") and _SAFE_NAME.fullmatch(name) is not None


@lru_cache(maxsize=512)
def _comes_back(entry: tuple[str, str]) -> bool:
    """Whether a backend's header (its name in lower case) is for the client."""
    name, value = entry
    return (
        name not in _NOT_GIVEN_BACK
        and not name.startswith("x-nexus-")
        and _SAFE_NAME.fullmatch(name) is not None
        and _is_safe(value)
    )


def _is_safe(value: str) -> bool:
    """Whether a value can stand in a head: printable ASCII nearly always, which is quickly seen."""
    return (value.isascii() and value.isprintable()) or _SAFE_VALUE.fullmatch(value) is not None


def answer_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """A backend's end-to-end headers, as the client gets them."""
    return [entry for entry in headers if _comes_back(entry)]


def retry_after_s(headers: Iterable[tuple[str, str]], *, now: Callable[[], float] = time.time) -> float | None:
    """When an answer asks to come back, in seconds from now; None where it does not say, or not in a known form.

    `Retry-After` is a number of seconds or a date (RFC 9110, section 10.2.3); `retry-after-ms` is OpenAI's finer one.
    """
    given = dict(headers)
    try:
        if (milliseconds := given.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        if (value := given.get("retry-after")) is None:
            return None
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - now())
    except (ValueError, OverflowError):
        return None


@lru_cache(maxsize=1024)
def header_text(text: str) -> str:
    """A name as a header's value: what a header cannot carry is written as `?`."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)
