"""Comments for a client that waits for its stream to begin, so that nothing between it and us
thinks it is dead.

With the first comment the head is out: whatever comes of the request is then told within the
stream.
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
    stopped: Callable[[], bytes],
) -> ClientResponse:
    """What `serve` gives, if it is there within `every_s`; else a stream of comments that goes over
    into it.

    `serve` runs in a thread (under gevent, a greenlet), and never raises. `headers` are those of
    every answer. `stopped` records the request as one that the gateway ended, and gives the event
    that says so.
    """
    waited = _Waited(serve)
    try:
        if waited.ready(every_s):
            return waited.answer
    except BaseException:
        waited.abandon()
        raise
    headers = [
        *headers,
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-cache"),
    ]
    return ClientResponse(200, headers, CommentedBody(waited, every_s, dialect, stopped))


class _Waited:
    """An answer that is being made elsewhere."""

    def __init__(self, serve: Callable[[], ClientResponse]) -> None:
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._abandoned = False
        self.answer: ClientResponse
        threading.Thread(target=self._work, args=(serve,), daemon=True).start()

    def _work(self, serve: Callable[[], ClientResponse]) -> None:
        answer = serve()
        with self._lock:
            self.answer = answer
            abandoned = self._abandoned
            self._done.set()
        if abandoned:
            _close(answer)

    def ready(self, within_s: float) -> bool:
        return self._done.wait(within_s)

    def abandon(self) -> None:
        """Nobody wants it any more: it is closed, now or when it is there."""
        with self._lock:
            self._abandoned = True
            there = self._done.is_set()
        if there:
            _close(self.answer)


class CommentedBody:
    """Comments, then the answer's own bytes as events."""

    def __init__(
        self, waited: _Waited, every_s: float, dialect: Dialect, stopped: Callable[[], bytes]
    ) -> None:
        self._waited = waited
        self._dialect = dialect
        self._stopped = stopped
        self._chunks = self._run(every_s)

    def _run(self, every_s: float) -> Iterator[bytes]:
        yield self._dialect.KEEPALIVE
        while not self._waited.ready(every_s):
            yield self._dialect.KEEPALIVE
        answer = self._waited.answer
        if isinstance(answer.body, StreamBody):
            yield from answer.body
            return
        events = self._dialect.response_events(b"".join(answer.body), answer.status)
        if events:
            yield events

    def __iter__(self) -> CommentedBody:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except Stopping:
            return self.stop()

    def stop(self) -> bytes:
        """The gateway ends it; gives the event that tells the client."""
        event = self._stopped()
        self._waited.abandon()
        return event

    def close(self) -> None:
        self._waited.abandon()


def _close(answer: ClientResponse) -> None:
    close = getattr(answer.body, "close", None)
    if close is not None:
        close()
