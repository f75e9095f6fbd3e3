"""Which headers cross the gateway, in either direction."""

from __future__ import annotations

import re
from collections.abc import Iterable

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

    The client's Authorization goes on only where the configuration lets it; a prefix of ours (`x-nexus-`) never does.
    """
    named = {
        token.strip().lower() for name, value in headers if name.lower() == "connection" for token in value.split(",")
    }
    lines = [
        f"POST {address.prefix}{path} HTTP/1.1",
        f"host: {address.host_header}",
        f"content-length: {length}",
        "accept-encoding: identity",
        f"x-request-id: {request_id}",
    ]
    if key is not None:
        lines.append(f"authorization: Bearer {key}")
    for name, value in headers:
        lower = name.lower()
        if lower == "authorization":
            if key is not None or not forwards_authorization(config):
                continue
        elif lower in _NOT_SENT_ON or lower in named or lower.startswith("x-nexus-"):
            continue
        if _SAFE_NAME.fullmatch(name) and _SAFE_VALUE.fullmatch(value):
            lines.append(f"{lower}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def answer_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """A backend's end-to-end headers, as the client gets them."""
    return [
        (name, value)
        for name, value in headers
        if name not in _NOT_GIVEN_BACK
        and not name.startswith("x-nexus-")
        and _SAFE_NAME.fullmatch(name)
        and _SAFE_VALUE.fullmatch(value)
    ]


def header_text(text: str) -> str:
    """A name as a header's value: what a header cannot carry is written as `?`."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)
