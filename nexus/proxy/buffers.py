"""The bytes that one process holds in memory for bodies and answers in progress, and their
limit."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from nexus.errors import RequestFailed
from nexus.proxy.request import Request


class Buffers:
    """Counts bytes for requests. `held` is their sum now.

    Small bodies that come with their headers are not counted: `max_concurrent_requests` bounds
    those.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        """`most` gives the limit that holds now."""
        self._most = most
        self._lock = Lock()
        self.held = 0

    def hold(self, request: Request, count: int) -> None:
        """Count so many bytes more for a request, until `release`. Raises `RequestFailed` over
        the limit."""
        with self._lock:
            if self.held + count <= self._most():
                self.held += count
                request.held += count
                return
        raise RequestFailed(
            "at_capacity",
            "The gateway holds as many bytes of requests and answers as it may; try again shortly.",
            headers={"retry-after": "1"},
        )

    def release(self, request: Request, count: int | None = None) -> None:
        """Give back so many of the bytes that were counted for a request; without `count`, all
        of them."""
        with self._lock:
            count = request.held if count is None else min(count, request.held)
            self.held -= count
            request.held -= count
