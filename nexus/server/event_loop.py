"""Waiting in gevent's hub: for a backend while watching the client, and through a whole stream."""

from __future__ import annotations

import _socket
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket
from gevent.hub import get_hub

from nexus.http.client_watch import (
    LOOK_EVERY_S,
    ClientGone,
    DisconnectWatch,
    Source,
    has_left,
    is_gone,
)
from nexus.http.connection_pool import READ_SIZE, Connection
from nexus.proxy.relay import StreamBody, chunk

_READ, _WRITE = 1, 2
_READY, _LATE, _GONE = range(3)
_PIECE = 16 * 1024
"""Bytes of a stream that are read at once; a larger buffer costs more than it saves."""
_LONG_S = 1.0
"""Waits with a longer limit may end a tick late."""
_NEVER = float("inf")


class WaitScheduler:
    """All the waits of a worker: ended when they take too long, woken in the order in which they began.

    Their limits are looked at now and then, and so are clients that may have left after they sent bytes ahead: a wait
    costs no timer of its own, and may end late by as much as the tick. Of what is found ready in one turn of the loop,
    libev serves last what came first; and whoever is served last is not ready again for the next turn, nor first in
    the one after, so that the same requests would take two turns more than all others, again and again.

    `begun`: how many waits have begun, which numbers them.
    """

    def __init__(self) -> None:
        self._watches: set[HubDisconnectWatch] = set()
        self._timer: Any = None
        self.begun = 0
        self._ready: list[tuple[int, HubDisconnectWatch]] = []

    def add(self, watch: HubDisconnectWatch) -> None:
        self._watches.add(watch)
        if self._timer is None:
            self._timer = get_hub().loop.timer(LOOK_EVERY_S, LOOK_EVERY_S)
            self._timer.start(self._look)

    def remove(self, watch: HubDisconnectWatch) -> None:
        self._watches.discard(watch)

    def _look(self) -> None:
        now = time.monotonic()
        for watch in [watch for watch in self._watches if watch.ends <= now or watch.ahead]:
            watch.look(now)
        if not self._watches:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def ready(self, watch: HubDisconnectWatch) -> None:
        """What it waits for is there: it is woken at the end of this turn."""
        if not self._ready:
            get_hub().loop.run_callback(self._wake)
        self._ready.append((watch.number, watch))

    def _wake(self) -> None:
        ready, self._ready = self._ready, []
        ready.sort()
        for number, watch in ready:
            watch.wake(number)


class HubReadinessNotifier:
    """Tells when a backend sends something, by one watcher for the whole life of its connection."""

    __slots__ = ("_waits", "_watcher", "early", "waiter")

    def __init__(self, fd: int, waits: WaitScheduler) -> None:
        self._waits = waits
        self._watcher = get_hub().loop.io(fd, _READ)
        self.early = False
        self.waiter: HubDisconnectWatch | None = None
        self._watcher.start(self._readable)

    def _readable(self) -> None:
        if self.waiter is None:
            self.pause()
        else:
            self._waits.ready(self.waiter)

    def pause(self) -> None:
        """Look no more until `resume`: something is there, or somebody else looks."""
        self.early = True
        self._watcher.stop()

    def resume(self) -> None:
        self.early = False
        self._watcher.start(self._readable)

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()


class HubDisconnectWatch(DisconnectWatch):
    """Waits in the hub. The watcher on the client is made once, and runs for as long as its connection does.

    `ends`: until when, on the monotonic clock, the present wait may last; `ahead`: the client has sent bytes ahead, so
    that it is readable whether it leaves or not.
    """

    def __init__(self, client: socket.socket, waits: WaitScheduler) -> None:
        super().__init__(client)
        # The same socket without what gevent does around each call: it costs as much as the call.
        self.sock = _socket.socket(fileno=client.fileno())
        self.ends = _NEVER
        self.number = 0
        self.ahead = False
        self._closed = False
        self._waits = waits
        self._hub = get_hub()
        self._watcher = self._hub.loop.io(client.fileno(), _READ)
        self._stopped = True
        self._reads = False
        self._switch: Callable[[int], Any] | None = None
        waits.add(self)

    def receive(self, timeout_s: float) -> bytes:
        """What the client sends next; empty where it closes, or sends nothing for so long."""
        # It waits before it reads: nearly always nothing is there yet, and a client that always has something ready
        # must not starve the others.
        self._reads, self.ahead = True, False
        try:
            while self._wait(gevent.getcurrent().switch, timeout_s) == _READY:
                try:
                    return self.sock.recv(READ_SIZE)
                except BlockingIOError:
                    continue
            return b""
        finally:
            self._reads = False

    def wait_for(self, source: Source, timeout_s: float) -> None:
        switch = gevent.getcurrent().switch
        arrivals = source.arrivals
        if arrivals is None:
            arrivals = source.arrivals = HubReadinessNotifier(source.fileno(), self._waits)
        elif arrivals.early:
            arrivals.resume()
        arrivals.waiter = self
        try:
            ended = self._wait(switch, timeout_s)
        finally:
            arrivals.waiter = None
        if ended != _READY:
            _tell(ended)

    def wait(self, fd: int | None, event: int, timeout_s: float) -> None:
        switch = gevent.getcurrent().switch
        if fd is None:
            ended = self._wait(switch, timeout_s)
        else:
            watcher = get_hub().loop.io(fd, _READ if event == select.POLLIN else _WRITE)
            watcher.start(switch, _READY)
            try:
                ended = self._wait(switch, timeout_s)
            finally:
                watcher.stop()
                watcher.close()
        _tell(ended)

    def _wait(self, switch: Callable[[int], Any], timeout_s: float) -> int:
        """Sleep until somebody calls `switch`; gives with what."""
        if self._closed:
            return _GONE
        hub, timer = self._hub, None
        if timeout_s > _LONG_S:
            self.ends = time.monotonic() + timeout_s
        else:
            timer = hub.loop.timer(max(timeout_s, 0))
            timer.start(switch, _LATE)
        if self._stopped and not self.ahead:
            self._stopped = False
            self._watcher.start(self._readable)
        waits = self._waits
        waits.begun = self.number = waits.begun + 1
        self._switch = switch
        try:
            return hub.switch()  # type: ignore[no-any-return]
        finally:
            self._switch = None
            self.ends = _NEVER
            if timer is not None:
                timer.stop()
                timer.close()

    def _readable(self) -> None:
        switch = self._switch
        if switch is not None:
            if self._reads:
                self._waits.ready(self)
                return
            if is_gone(self.sock):
                switch(_GONE)
                return
            self.ahead = True  # a request that is sent ahead: the client stays readable, whether it leaves or not
        self._stopped = True
        self._watcher.stop()

    def wake(self, number: int, ended: int = _READY) -> None:
        """End the wait of this number, if something else has not done so in the same turn."""
        if self._switch is not None and self.number == number:
            self._switch(ended)

    def look(self, now: float) -> None:
        """End the present wait, where that is due."""
        switch = self._switch
        if switch is None:
            return
        if self.ends <= now:
            switch(_LATE)
        elif self.ahead and has_left(self.sock):
            switch(_GONE)

    def closed(self) -> bool:
        """Whether the client has closed its side; to be asked where `receive` gave nothing."""
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Look at the client no more. Who still waits, as a helper may, is told that it is gone."""
        self._closed = True
        if self._switch is not None:
            self._hub.loop.run_callback(self.wake, self.number, _GONE)
        self._waits.remove(self)
        self._watcher.stop()
        self._watcher.close()
        self.sock.detach()


def _tell(ended: int) -> None:
    if ended == _GONE:
        raise ClientGone
    if ended == _LATE:
        raise TimeoutError


class BufferedWriter:
    """Sends to a client over a socket that does not block. `unsent`: what was begun to be sent and is not sent yet, for
    whoever ends a `send` before its time."""

    def __init__(self, client: _socket.socket) -> None:
        self._client = client
        self.unsent: bytes | memoryview = b""

    def send(self, data: bytes, timeout_s: float) -> None:
        """Send everything; the client may take `timeout_s` between two of its reads. Raises OSError."""
        try:
            sent = self._client.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.unsent = memoryview(data)[sent:]
            while self.unsent:
                gevent.socket.wait_write(self._client.fileno(), timeout_s)
                self.unsent = self.unsent[_send_now(self._client, self.unsent) :]


def _send_now(client: _socket.socket, data: bytes | memoryview) -> int:
    try:
        return client.send(data)
    except BlockingIOError:
        return 0


class StreamRelay:
    """Carries a stream from its backend to its client in the hub's callbacks; its greenlet sleeps until the end.

    A switch of greenlets for each event would cost more than the event. Where the client takes less than comes, the
    backend is not read until it has taken it: `run` then sends, as any server would.
    """

    def __init__(
        self,
        body: StreamBody,
        backend: Connection,
        watch: HubDisconnectWatch,
        *,
        timeout_s: float,
    ) -> None:
        """The client, which gets the stream in chunks, may take `timeout_s` between two of its reads."""
        self._body = body
        self._backend = backend
        self._client = watch.sock
        self._watch = watch
        self._timeout_s = timeout_s
        self.unsent = b""
        """What was begun to be sent and is not sent yet; to be sent before anything else."""
        self._switch: Callable[[Any], None] = lambda _: None

    def run(self) -> None:
        """Relay until the stream is over and written. Raises `ClientGone`, or whatever is thrown into the greenlet."""
        while not self._body.ended:
            self.unsent = self._in_the_hub()
            while self.unsent:
                self.unsent = self.unsent[_send_now(self._client, self.unsent) :]
                if self.unsent:
                    gevent.socket.wait_write(self._client.fileno(), self._timeout_s)

    def _in_the_hub(self) -> bytes:
        """Relay in callbacks until the stream is over or the client takes no more; gives what is left to be sent."""
        hub = get_hub()
        self._switch = gevent.getcurrent().switch
        limit_s, _ = self._body.silence_limit(0.0)
        arrivals = self._backend.arrivals
        if arrivals is not None:
            arrivals.pause()
        backend = hub.loop.io(self._backend.fileno(), _READ)
        client = hub.loop.io(self._client.fileno(), _READ)
        self._receive, self._put = self._backend.sock.recv, self._client.send
        self._timer = hub.loop.timer(max(min(limit_s, self._body.check_every_s), 0))
        backend.start(self._readable)
        client.start(self._client_readable, client)
        self._timer.start(self._look)
        try:
            outcome = hub.switch()
        finally:
            for watcher in (backend, client, self._timer):
                watcher.stop()
                watcher.close()
            if (
                self._backend.arrivals is not None
            ):  # it is closed with its connection, as the stream's end may do
                self._backend.arrivals.resume()
        if isinstance(outcome, BaseException):
            raise outcome
        return bytes(outcome)

    def _readable(self) -> None:
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
        if shown:
            try:
                sent = self._put(shown)
            except BlockingIOError:
                pass
            except OSError:
                self.unsent = shown
                self._switch(ClientGone())
                return
        if sent < len(shown) or self._body.ended:
            self._switch(shown[sent:])

    def _client_readable(self, watcher: Any) -> None:
        if is_gone(self._client):
            self._switch(ClientGone())
        else:
            watcher.stop()  # a request that is sent ahead

    def _look(self) -> None:
        """The limit for silence may be over: the timer is not touched at each event, so this sees when the last was."""
        left_s, failure = self._body.silence_limit(self._body.idle_s())
        if left_s <= 0:
            try:
                shown = chunk(self._body.fail(failure))
            except BaseException as error:  # noqa: BLE001 - it belongs to the greenlet that serves the request
                self._switch(error)
            else:
                self._send(shown)
            return
        self._timer.stop()
        self._timer.close()
        self._timer = get_hub().loop.timer(min(left_s, self._body.check_every_s))
        self._timer.start(self._look)
