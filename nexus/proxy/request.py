"""A client's request, as the engine gets it from a server."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from nexus.dialects.base import InvalidBody
from nexus.errors import RequestFailed
from nexus.http.client_watch import DisconnectWatch
from nexus.http.headers import RequestHeaders
from nexus.proxy.endpoint_table import Target


class Request(msgspec.Struct):
    """A request whose headers have arrived.

    Attributes:
        body: The whole body if it arrived with the headers. Else a function that reads it, up to a
            limit in bytes, and calls its second argument with the size of each piece. It raises
            `RequestFailed`.
        received: When the whole head had arrived, on the monotonic clock.
        head_s: How long the head took to arrive, from its first byte.
        watch: Waits for backends while it watches the client.
        held: Bytes counted for it in the process's `Buffers`.
        client_keys: Whether its credentials may be for a backend, and not for the gateway.
    """

    method: str
    target: Target
    headers: RequestHeaders
    body: bytes | Callable[[int, Callable[[int], None]], bytes]
    received: float
    watch: DisconnectWatch
    held: int = 0
    client_keys: bool = True
    consume: Callable[[int, Callable[[bytes], object]], None] | None = None
    head_s: float = 0.0

    @property
    def started(self) -> float:
        """When its first byte arrived."""
        return self.received - self.head_s

    def header(self, name: str) -> str | None:
        """The value of a header by its name in lower case."""
        return self.headers.first.get(name)


def invalid_body(error: InvalidBody) -> RequestFailed:
    """The failure of a request whose body its dialect cannot read."""
    fault = "invalid_request" if error.json else "invalid_json"
    return RequestFailed(fault, str(error), param=error.param)
