"""The small HTTP client of the commands, on the standard library, which imports fast."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from nexus.cli.output import Exit, Failure

TIMEOUT_S = 5.0


class NoResponse(Exception):
    """An address did not respond; the message says why in a few words."""


@dataclass(frozen=True)
class Response:
    """The response of an address."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)

    def error_code(self) -> str | None:
        """The code of an error in OpenAI's form."""
        try:
            code = self.json()["error"]["code"]
        except (ValueError, KeyError, TypeError):
            return None
        return str(code)

    def message(self) -> str:
        """The message of an error, else the start of the body."""
        return error_message(self.content, self.status)


def error_message(content: bytes, status: int) -> str:
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = content[:200].decode(errors="replace").strip()
        return f"It responded {status}" + (f": {text}" if text else ".")


def open_request(
    method: str,
    url: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
) -> tuple[HTTPConnection, HTTPResponse]:
    """Send a request and read the response's headers; the caller closes. Raises `NoResponse`."""
    parts = urlsplit(url)
    try:
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    except ValueError as error:
        raise Failure(f"{url} is not an address ({error}).", status=Exit.USAGE) from error
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target or "/", body=body, headers=dict(headers or {}))
        return connection, connection.getresponse()
    except (OSError, HTTPException) as error:
        connection.close()
        raise NoResponse(_why(error)) from error


def http_request(
    method: str,
    url: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Response:
    """One request and its whole response, whatever its status. Raises `NoResponse`."""
    connection, response = open_request(
        method, url, body=body, headers=headers, timeout_s=timeout_s
    )
    try:
        content = response.read()
    except (OSError, HTTPException) as error:
        raise NoResponse(_why(error)) from error
    finally:
        connection.close()
    return Response(
        response.status, {name.lower(): value for name, value in response.getheaders()}, content
    )


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no response in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error) or "the response is not HTTP"
