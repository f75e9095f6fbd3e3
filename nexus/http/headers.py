"""Which headers cross the gateway, in either direction."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import quote, unquote_plus

import msgspec

from nexus.config import BackendConfig
from nexus.http.address import Address, forwards_authorization

HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
        "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""RFC 9110, section 7.6.1, and what older software sends."""

CREDENTIALS = frozenset(
    {
        "authorization", "x-api-key", "api-key", "x-goog-api-key", "ocp-apim-subscription-key", "x-litellm-api-key",
        "x-amz-security-token", "x-auth-token", "x-access-token", "x-functions-key",
    }
)  # fmt: skip
"""Headers that carry a client's own key. They go together, and only to a backend that may have them."""
_KEYS_IN_QUERIES = frozenset(
    {"key", "api_key", "api-key", "apikey", "access_token", "token", "auth", "subscription-key"}
)
_SAFE_IN_QUERIES = "!$&'()*+,-./:;=?@_~%[]"
"""RFC 3986, section 3.4, and the brackets that many clients leave as they are."""
BROWSER = frozenset({"origin", "sec-fetch-site"})
"""Headers by which a browser says from which page a request comes."""
_UNUSUAL = BROWSER | {"content-encoding"}
_NOT_SENT_ON = HOP_BY_HOP | CREDENTIALS | {
    "host",
    "content-length",
    "content-encoding",
    "accept-encoding",
    "expect",
    "cookie",
    "x-request-id",
    "origin",
    "referer",
    "forwarded",
    "x-real-ip",
    "true-client-ip",
    "cf-connecting-ip",
}  # fmt: skip
_NEVER_SENT_ON = ("x-nexus-", "x-forwarded-", "sec-", "access-control-")
"""Prefixes of headers that are not for a backend: our own, and those that tell who asks and from where."""
_NEVER_GIVEN_BACK = ("x-nexus-", "access-control-")
"""Prefixes of headers that are not for a client: our own, and permissions for browsers, which we give ourselves."""
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
    """A request's headers without Content-Length, in their order, with lower-case names.

    All requests of a connection that have the same headers share one. `first`: the first of each name; `credentials`:
    whether one of them is a key of the client's; `unusual`: whether one asks for a check that most requests need not.
    """

    pairs: list[tuple[str, str]]
    first: dict[str, str]
    credentials: bool
    unusual: bool
    _sent_on: dict[bool, str]

    @classmethod
    def of(cls, pairs: list[tuple[str, str]]) -> RequestHeaders:
        first = dict(reversed(pairs))
        return cls(
            pairs, first, not CREDENTIALS.isdisjoint(first), not _UNUSUAL.isdisjoint(first), {}
        )

    def sent_on(self, *, credentials: bool) -> str:
        """The lines of those that are for a backend, with the client's own keys only if that is wanted."""
        lines = self._sent_on.get(credentials)
        if lines is None:
            lines = self._sent_on[credentials] = _sent_on(self.pairs, credentials=credentials)
        return lines


def request_head(
    headers: RequestHeaders,
    *,
    path: str,
    address: Address,
    config: BackendConfig,
    key: str | None,
    request_id: str,
    via: str,
    length: int,
    query: str = "",
) -> bytes:
    """The head of a request to a backend: the client's end-to-end headers, our own key, and no compression.

    `via` is the name that this gateway has in Via headers (RFC 9110, section 7.6.3).

    The client's own credentials go on only if the configuration lets them, and never beside our key.
    """
    own_key = f"authorization: Bearer {key}\r\n" if key is not None else ""
    credentials = key is None and forwards_authorization(config)
    theirs = headers.sent_on(credentials=credentials)
    if query and (query := query_sent_on(query, credentials=credentials)):
        first = _first_lines.__wrapped__(
            address, f"{path}?{query}", via
        )  # clients' queries are not cached
    else:
        first = _first_lines(address, path, via)
    return (
        f"{first}content-length: {length}\r\nx-request-id: {request_id}\r\n{own_key}{theirs}\r\n"
    ).encode("latin-1")


def _sent_on(headers: Sequence[tuple[str, str]], *, credentials: bool) -> str:
    lines = [_line_sent_on(entry) for entry in headers]
    if credentials:
        lines += [
            _line(entry) for entry in headers if entry[0] in CREDENTIALS and _is_safe(entry[1])
        ]
    return "".join(_less_named(headers, lines) if None in lines else lines)  # type: ignore[arg-type]


def _less_named(headers: Sequence[tuple[str, str]], lines: list[str | None]) -> list[str | None]:
    """The lines without those that the client's Connection header names, which are meant for us alone."""
    alone = {"connection"} | _named_by_connection(headers)
    return [line for line in lines if line is not None and line.partition(":")[0] not in alone]


@lru_cache(maxsize=512)
def _line_sent_on(entry: tuple[str, str]) -> str | None:
    """A client's header as a line for the backend, empty where it is not for it; None where it names others that are
    not. Credentials are looked at apart."""
    name, value = entry
    if name == "connection" and value.lower() not in ("keep-alive", "close"):
        return None
    return _line(entry) if _goes_on(name) and _is_safe(value) else ""


def _line(entry: tuple[str, str]) -> str:
    return f"{entry[0]}: {entry[1]}{_END}"


@lru_cache(maxsize=1024)
def _first_lines(address: Address, path: str, via: str) -> str:
    return (
        f"POST {address.target(path)} HTTP/1.1\r\nhost: {address.host_header}\r\n"
        f"accept-encoding: identity\r\nvia: 1.1 {via}\r\n"
    )


@lru_cache(maxsize=256)
def query_sent_on(query: str, *, credentials: bool) -> str:
    """A client's query as a backend gets it: in printable characters, and without keys unless it may have them."""
    kept = [
        field
        for field in query.split("&")
        if credentials or unquote_plus(field.partition("=")[0]).lower() not in _KEYS_IN_QUERIES
    ]
    return quote("&".join(kept), safe=_SAFE_IN_QUERIES, encoding="latin-1", errors="replace")


def has_come_through(headers: RequestHeaders, via: str) -> bool:
    """Whether the request has passed the gateway of this name before."""
    return "via" in headers.first and any(
        element.split()[1:2] == [via]
        for name, value in headers.pairs
        if name == "via"
        for element in value.split(",")
    )


def _goes_on(name: str) -> bool:
    """Whether a client's header (its name in lower case) is for the backend."""
    return (
        name not in _NOT_SENT_ON
        and not name.startswith(_NEVER_SENT_ON)
        and _SAFE_NAME.fullmatch(name) is not None
    )


@lru_cache(maxsize=512)
def _comes_back(entry: tuple[str, str]) -> bool:
    """Whether a backend's header (its name in lower case) is for the client."""
    name, value = entry
    return (
        name not in _NOT_GIVEN_BACK
        and not name.startswith(_NEVER_GIVEN_BACK)
        and _SAFE_NAME.fullmatch(name) is not None
        and _is_safe(value)
    )


def _is_safe(value: str) -> bool:
    """Whether a value can stand in a head: printable ASCII nearly always, which is quickly seen."""
    return (value.isascii() and value.isprintable()) or _SAFE_VALUE.fullmatch(value) is not None


def answer_headers(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """A backend's end-to-end headers, as the client gets them: without those that its Connection header names."""
    found = [entry for entry in headers if _comes_back(entry)]
    if named := _named_by_connection(headers):
        return [entry for entry in found if entry[0] not in named]
    return found


def _named_by_connection(headers: Iterable[tuple[str, str]]) -> set[str]:
    """The names in the Connection headers: those fields are for the next hop alone (RFC 9110, section 7.6.1)."""
    return {
        token.strip()
        for name, value in headers
        if name == "connection"
        for token in value.lower().split(",")
    }


def retry_after_s(
    headers: Iterable[tuple[str, str]], *, now: Callable[[], float] = time.time
) -> float | None:
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
