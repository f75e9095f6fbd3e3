"""Sends to clients over non-blocking sockets, and relays streams in the hub's callbacks."""

from __future__ import annotations

import _socket
import contextlib
from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket
from gevent.hub import get_hub

from nexus.http.client_watch import ClientGone, is_at_eof
from nexus.http.connection_pool import Connection
from nexus.proxy.relay import StreamBody, chunk
from nexus.server.event_loop import READ

_PIECE = 16 * 1024
"""Bytes of a stream that one read takes; a larger buffer costs more than it saves."""


class BufferedWriter:
    """Sends to a client, and buffers what its socket does not accept.

    Attributes:
        client: The client's socket, without gevent's wrapper.
        unsent: The remainder of the last send. It must go out before anything else.
    """

    def __init__(self, client: _socket.socket) -> None:
        self.client = client
        self.unsent: bytes | memoryview = b""

    def send(self, data: bytes, timeout_s: float) -> None:
        """Send everything, with `timeout_s` between two reads of the client. Raises OSError."""
        try:
            sent = self.client.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.unsent = memoryview(data)[sent:]
            self.flush(timeout_s)

    def flush(self, timeout_s: float) -> None:
        """Send the remainder. Raises OSError."""
        while self.unsent:
            gevent.socket.wait_write(self.client.fileno(), timeout_s)
            with contextlib.suppress(BlockingIOError):
                self.unsent = self.unsent[self.client.send(self.unsent) :]

    def finish(self, data: bytes, timeout_s: float) -> None:
        """Send the remainder of a send that was interrupted, then `data`. Raises OSError."""
        self.send(bytes(self.unsent) + data, timeout_s)


class StreamRelay:
    """Carries a stream from its backend to its client in the hub's callbacks; its greenlet sleeps
    until the end.

    A greenlet switch for each event would cost more than the event. If the client reads more slowly
    than the backend sends, `run` sends the remainder and does not read the backend meanwhile
    (backpressure).
    """

    def __init__(
        self, body: StreamBody, backend: Connection, writer: BufferedWriter, *, timeout_s: float
    ) -> None:
        """The client gets the stream in chunks, and may pause for `timeout_s` between two reads."""
        self._body = body
        self._backend = backend
        self._writer = writer
        self._client = writer.client
        self._timeout_s = timeout_s
        self._switch: Callable[[BaseException | None], None] = lambda _: None

    def run(self) -> None:
        """Relay until the stream is over and written.

        Raises `ClientGone`, or what is thrown into the greenlet.
        """
        while not self._body.ended:
            self._relay_in_hub()
            if self._body.ended:
                self._body.release()
            self._writer.flush(self._timeout_s)

    def _relay_in_hub(self) -> None:
        """Relay in callbacks until the stream is over or the client's socket is full."""
        hub = get_hub()
        self._switch = gevent.getcurrent().switch
        limit_s, _ = self._body.silence_limit(0.0)
        notifier = self._backend.notifier
        if notifier is not None:
            notifier.pause()
        backend = hub.loop.io(self._backend.fileno(), READ)
        client = hub.loop.io(self._client.fileno(), READ)
        self._receive, self._put = self._backend.sock.recv, self._client.send
        self._timer = hub.loop.timer(
            max(min(limit_s, self._body.next_check_s(self._body.idle_s())), 0)
        )
        backend.start(self._on_backend_readable)
        client.start(self._on_client_readable, client)
        self._timer.start(self._check_silence)
        try:
            error: BaseException | None = hub.switch()
        finally:
            for watcher in (backend, client, self._timer):
                watcher.stop()
                watcher.close()
            # The end of a stream may have closed the connection, and its notifier with it: libev
            # aborts the process if a watcher is started on a closed descriptor.
            if self._backend.notifier is not None:
                self._backend.notifier.resume()
        if error is not None:
            raise error

    def _on_backend_readable(self) -> None:
        body, data = self._body, None
        try:
            data = self._receive(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            pass
        try:
            shown = chunk(body.fail(body.reset())) if data is None else body.feed_chunk(data)
        except BaseException as error:  # noqa: BLE001 - it belongs to the greenlet that serves the request
            self._switch(error)
            return
        self._send(shown)

    def _send(self, shown: bytes) -> None:
        sent = 0
        if shown and not self._body.ended:  # `run` sends the end
            try:
                sent = self._put(shown)
            except BlockingIOError:
                pass
            except OSError:
                self._writer.unsent = shown
                self._switch(ClientGone())
                return
        if sent < len(shown) or self._body.ended:
            self._writer.unsent = shown[sent:]
            self._switch(None)

    def _on_client_readable(self, watcher: Any) -> None:
        if is_at_eof(self._client):
            self._switch(ClientGone())
        else:
            watcher.stop()  # the client has sent its next request ahead

    def _check_silence(self) -> None:
        """Fail the stream if its backend has been silent for too long.

        Restarting the timer at each event would cost more than this: it runs on, and then asks when
        the last event was.
        """
        quiet_s = self._body.idle_s()
        remaining_s, failure = self._body.silence_limit(quiet_s)
        if remaining_s <= 0:
            try:
                shown = chunk(self._body.fail(failure))
            except BaseException as error:  # noqa: BLE001 - it belongs to the greenlet that serves the request
                self._switch(error)
            else:
                self._send(shown)
            return
        ping = self._body.ping(quiet_s)
        self._timer.stop()
        self._timer.close()
        self._timer = get_hub().loop.timer(min(remaining_s, self._body.next_check_s(quiet_s)))
        self._timer.start(self._check_silence)
        if ping:
            self._send(chunk(ping))
