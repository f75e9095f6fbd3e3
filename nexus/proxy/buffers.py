"""The limit on bytes that one process holds for bodies and responses in progress."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from nexus.errors import RequestFailed
from nexus.proxy.request import Request


class Buffers:
    """Counts the bytes that requests hold. `held` is their sum.

    Small bodies that arrive with their headers are not counted: `max_concurrent_requests` limits
    them.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        """`most` returns the present limit."""
        self._most = most
        self._lock = Lock()
        self.held = 0

    def hold(self, request: Request, count: int) -> None:
        """Count bytes for a request, until `release`. Raises `RequestFailed` over the limit."""
        with self._lock:
            if self.held + count <= self._most():
                self.held += count
                request.held += count
                return
        raise RequestFailed(
            "at_capacity",
            "The gateway's memory for requests and responses is full; try again shortly.",
            headers={"retry-after": "1"},
        )

    def release(self, request: Request, count: int | None = None) -> None:
        """Release so many of a request's bytes; without `count`, all of them."""
        with self._lock:
            count = request.held if count is None else min(count, request.held)
            self.held -= count
            request.held -= count
