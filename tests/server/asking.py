"""Requests of any form, and what they move."""

import http.client
import json
import socket
from contextlib import closing
from typing import Any, NamedTuple

from tests.support.metrics import Sample, Scrape, moved
from tests.support.polling import until
from tests.support.processes import Gateway

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {
    "model": "demo-small",
    "max_tokens": 2,
    "messages": [{"role": "user", "content": "hi"}],
}
BODY = json.dumps(GOOD).encode()
JSON = {"content-type": "application/json"}
NAMED = "https://chat.example"
COUNTED = (
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_requests_started_total",
    "nexus_http_rejected_total",
    "nexus_http_preflights_total",
)


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def code(self) -> Any:
        return json.loads(self.content)["error"]["code"]


def ask(
    gateway: Gateway,
    target: str = CHAT,
    *,
    method: str = "POST",
    body: bytes | None = BODY,
    headers: dict[str, str] | None = None,
    source: str | None = None,
    **more: str,
) -> Reply:
    """Send a request; `more` are further headers, with `_` for `-`. Its host is that of the
    gateway if none is given. `source` is the address from which the client connects."""
    given = {
        **(JSON if headers is None else headers),
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    connecting = http.client.HTTPConnection(
        "127.0.0.1", gateway.port, timeout=20, source_address=(source, 0) if source else None
    )
    with closing(connecting) as connection:
        connection.putrequest(method, target, skip_host="host" in given, skip_accept_encoding=True)
        for name, value in given.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        reply = connection.getresponse()
        return Reply(
            reply.status,
            {name.lower(): value for name, value in reply.headers.items()},
            reply.read(),
        )


def raw(gateway: Gateway, data: bytes) -> bytes:
    """Everything that comes back for these bytes, until the gateway closes."""
    received = b""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as sock:
        sock.sendall(data)
        while piece := sock.recv(65536):
            received += piece
    return received


def series(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


def counted(
    status: int, error_type: str | None = None, model: str = "demo_small", backend: str = "demo"
) -> dict[Sample, float]:
    """What one chat request moves that ended so."""
    found = {
        series("nexus_requests_started_total", endpoint="chat_completions"): 1.0,
        series("nexus_requests_total", model=model, backend=backend, status=str(status)): 1.0,
    }
    if error_type is not None:
        found[series("nexus_errors_total", error_type=error_type, model=model)] = 1.0
    return found


def refused(status: int, error_type: str = "invalid_request") -> dict[Sample, float]:
    """What one chat request moves that was refused before its model was known."""
    return counted(status, error_type, model="unknown", backend="none")


def rejected(reason: str) -> dict[Sample, float]:
    return {series("nexus_http_rejected_total", reason=reason): 1.0}


class Counting:
    """Asserts at its end that exactly `expected` has moved."""

    def __init__(self, gateway: Gateway, expected: dict[Sample, float]) -> None:
        self._gateway = gateway
        self._expected = expected
        self._before: Scrape

    def __enter__(self) -> None:
        self._before = self._gateway.settled()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        found: dict[Sample, float] = {}

        def as_expected() -> bool:
            nonlocal found
            found = moved(self._before, self._gateway.settled(), COUNTED)
            return found == self._expected

        try:
            until(as_expected)
        except AssertionError:
            raise AssertionError(f"moved {found}, not {self._expected}") from None
