"""Errors of requests that reach no endpoint, in the dialect of their path."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any

from nexus.dialects import anthropic, openai
from nexus.dialects.base import Dialect
from nexus.errors import INTERNAL_MESSAGE
from nexus.proxy.endpoints import ENDPOINTS
from nexus.proxy.own_error import own_error

_LONGEST_PATH = 256
"""Longer than the path of any endpoint. It bounds the search for one above a path."""
_LONGEST_MESSAGE = 300
_AUTHORITY = re.compile(r"\A[a-z]++://[^/?]*")
"""What precedes the path in an absolute target (RFC 9112, section 3.2.2)."""


def dialect_of(path: str, *, anthropic_client: bool = False) -> Dialect:
    """The dialect of the endpoint at this path or above it.

    Elsewhere it is OpenAI's, or that of a client of Anthropic's API, which says so in a header.
    """
    path = path[:_LONGEST_PATH]
    while path:
        endpoint = ENDPOINTS.at(ENDPOINTS.canonical(path)[0])
        if endpoint is not None:
            return endpoint.dialect
        path = path.rpartition("/")[0]
    return anthropic if anthropic_client else openai


def dialect_of_head(data: bytes) -> Dialect:
    """As `dialect_of`, for a request that nobody has parsed: `data` starts with its head."""
    head = data.lstrip(b"\r\n").partition(b"\r\n\r\n")[0].lower()
    line = head.partition(b"\n")[0].decode("latin-1").split()
    target = _AUTHORITY.sub("", line[1], count=1) if len(line) > 1 else ""
    return dialect_of(target.partition("?")[0], anthropic_client=b"\nanthropic-version:" in head)


def dialect_of_parsed(request: Any) -> Dialect:
    """As `dialect_of`, for a request of gunicorn's parser.

    OpenAI's if the parser refused the head before it knew the path.
    """
    if request is None or getattr(request, "path", None) is None:
        return openai
    names = {name.lower() for name, _ in request.headers}
    return dialect_of(request.path, anthropic_client="anthropic-version" in names)


class ErrorWriter:
    """A client's socket on which gunicorn's HTML page of an error becomes one in a dialect.

    gunicorn's `handle_error` chooses the status and writes the log line. The request is counted as
    rejected before the client gets the response.
    """

    def __init__(
        self,
        client: socket.socket,
        error: BaseException,
        *,
        dialect: Dialect,
        rejected: Callable[[str], None],
    ) -> None:
        self._client = client
        self._error = error
        self._dialect = dialect
        self._rejected = rejected

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def sendall(self, page: bytes) -> None:
        status_line = page.partition(b"\r\n")[0].decode("latin-1")
        status = int(status_line.split()[1])
        code, message = "bad_request", str(self._error)[:_LONGEST_MESSAGE]
        more = [("Connection", "close")]
        if status == 500:
            code, message = "internal", INTERNAL_MESSAGE
            more.append(("x-should-retry", "false"))
        elif status == 431:
            code = "head_too_large"
        self._rejected(code)
        headers, content = own_error(self._dialect, message, status=status, code=code)
        lines = "\r\n".join([status_line, *map(": ".join, [*more, *headers])])
        self._client.sendall(f"{lines}\r\n\r\n".encode("latin-1") + content)
