"""Keep-alive comments for a client that waits for its stream to start.

The first comment sends the response headers with status 200, so that a later failure is reported
inside the stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from nexus.dialects.base import Dialect
from nexus.http.client_watch import Stopping
from nexus.proxy.engine import ClientResponse
from nexus.proxy.relay import StreamBody


def respond_with_comments(
    serve: Callable[[], ClientResponse],
    *,
    every_s: float,
    dialect: Dialect,
    headers: list[tuple[str, str]],
    stopped: Callable[[Stopping], bytes],
) -> ClientResponse:
    """The response of `serve`, if it returns within `every_s`; else comments, then the response.

    `serve` runs in a thread (under gevent, a greenlet), and never raises. `headers` are those of
    every response. `stopped` records that the gateway ended the request, and returns the event that
    reports it.
    """
    pending = _PendingResponse(serve)
    try:
        if pending.ready(every_s):
            return pending.response
    except BaseException:
        pending.abandon()
        raise
    headers = [
        *headers,
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-cache"),
    ]
    return ClientResponse(200, headers, CommentedBody(pending, every_s, dialect, stopped))


class _PendingResponse:
    """A response that another thread makes."""

    def __init__(self, serve: Callable[[], ClientResponse]) -> None:
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._abandoned = False
        self.response: ClientResponse
        threading.Thread(target=self._work, args=(serve,), daemon=True).start()

    def _work(self, serve: Callable[[], ClientResponse]) -> None:
        response = serve()
        with self._lock:
            self.response = response
            abandoned = self._abandoned
            self._done.set()
        if abandoned:
            _close(response)

    def ready(self, within_s: float) -> bool:
        return self._done.wait(within_s)

    def abandon(self) -> None:
        """Close the response, now or when it is ready."""
        with self._lock:
            self._abandoned = True
            done = self._done.is_set()
        if done:
            _close(self.response)


class CommentedBody:
    """Comments, then the response as events."""

    def __init__(
        self,
        pending: _PendingResponse,
        every_s: float,
        dialect: Dialect,
        stopped: Callable[[Stopping], bytes],
    ) -> None:
        self._pending = pending
        self._dialect = dialect
        self._stopped = stopped
        self._chunks = self._run(every_s)

    def _run(self, every_s: float) -> Iterator[bytes]:
        yield self._dialect.KEEPALIVE
        while not self._pending.ready(every_s):
            yield self._dialect.KEEPALIVE
        response = self._pending.response
        if isinstance(response.body, StreamBody):
            yield from response.body
            return
        events = self._dialect.response_events(b"".join(response.body), response.status)
        if events:
            yield events

    def __iter__(self) -> CommentedBody:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except Stopping as stopping:
            return self.stop(stopping)

    def stop(self, stopping: Stopping) -> bytes:
        """End the stream because the gateway does; returns the event for the client."""
        event = self._stopped(stopping)
        self._pending.abandon()
        return event

    def close(self) -> None:
        self._pending.abandon()


def _close(response: ClientResponse) -> None:
    close = getattr(response.body, "close", None)
    if close is not None:
        close()
