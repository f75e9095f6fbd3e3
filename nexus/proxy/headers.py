"""Which headers cross the gateway, in either direction."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from email.utils import parsedate_to_datetime
from functools import lru_cache

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
_SAFE_VALUE = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")


def request_head(
    headers: Iterable[tuple[str, str]],
    *,
    path: str,
    address: Address,
    config: BackendConfig,
    key: str | None,
    request_id: str,
    length: int,
) -> bytes:
    """The head of a request to a backend: the client's end-to-end headers, our own key, and no compression.

    `headers` have lower-case names. The client's Authorization goes on only where the configuration lets it; a prefix
    of ours (`x-nexus-`) never does.
    """
    ours = f"{_first_lines(address, path)}content-length: {length}\r\nx-request-id: {request_id}\r\n"
    if key is not None:
        ours += f"authorization: Bearer {key}\r\n"
    theirs, named = [], ""
    for name, value in headers:
        if not _goes_on(name):
            if name == "connection" and value.lower() not in ("keep-alive", "close"):
                named += f",{value.lower()}"
            elif name != "authorization" or key is not None or not forwards_authorization(config):
                continue
        if _is_safe(value):
            theirs.append((name, value))
    if named:  # what the client names there is meant for us alone
        alone = {"connection", *(token.strip() for token in named.split(","))}
        theirs = [entry for entry in theirs if entry[0] not in alone]
    return f"{ours}{''.join([f'{name}: {value}{_END}' for name, value in theirs])}{_END}".encode("latin-1")


@lru_cache(maxsize=1024)
def _first_lines(address: Address, path: str) -> str:
    return f"POST {address.prefix}{path} HTTP/1.1\r\nhost: {address.host_header}\r\naccept-encoding: identity\r\n"


@lru_cache(maxsize=1024)
def _goes_on(name: str) -> bool:
    """Whether a client's header (its name in lower case) is for the backend."""
    return name not in _NOT_SENT_ON and not name.startswith("x-nexus-") and _SAFE_NAME.fullmatch(name) is not None


@lru_cache(maxsize=1024)
def _comes_back(name: str) -> bool:
    """Whether a backend's header (its name in lower case) is for the client."""
    return name not in _NOT_GIVEN_BACK and not name.startswith("x-nexus-") and _SAFE_NAME.fullmatch(name) is not None


def _is_safe(value: str) -> bool:
    """Whether a value can stand in a head: printable ASCII nearly always, which is quickly seen."""
    return (value.isascii() and value.isprintable()) or _SAFE_VALUE.fullmatch(value) is not None


def answer_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """A backend's end-to-end headers, as the client gets them."""
    return [entry for entry in headers if _comes_back(entry[0]) and _is_safe(entry[1])]


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
