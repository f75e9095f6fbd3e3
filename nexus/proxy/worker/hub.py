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

from nexus.proxy.client import LOOK_EVERY_S, ClientGone, Watch, has_left, is_gone
from nexus.proxy.connections import READ_SIZE
from nexus.proxy.relay import StreamBody, chunk

_READ, _WRITE = 1, 2
_READY, _LATE, _GONE = range(3)
_PIECE = 16 * 1024
"""Bytes of a stream that are read at once; a larger buffer costs more than it saves."""
_LONG_S = 1.0
"""Waits with a longer limit may end a tick late."""


class Deadlines:
    """Ends waits that take too long. One timer serves all of them: a wait costs no timer of its own, and may end late
    by as much as the tick."""

    TICK_S = 0.05

    def __init__(self) -> None:
        self._waits: dict[int, tuple[float, Callable[[int], Any]]] = {}
        self._timer: Any = None

    def add(self, key: int, at: float, switch: Callable[[int], Any]) -> None:
        """Call `switch` with `_LATE` when the monotonic clock is at `at`, unless `remove` comes before."""
        self._waits[key] = at, switch
        if self._timer is None:
            self._timer = get_hub().loop.timer(self.TICK_S, self.TICK_S)
            self._timer.start(self._look)

    def remove(self, key: int) -> None:
        self._waits.pop(key, None)

    def _look(self) -> None:
        now = time.monotonic()
        for switch in [switch for at, switch in self._waits.values() if at <= now]:
            switch(_LATE)
        if not self._waits:
            self._timer.stop()
            self._timer.close()
            self._timer = None


class HubWatch(Watch):
    """Waits in the hub, with a watcher on the client that is made once for its connection."""

    def __init__(self, client: socket.socket, deadlines: Deadlines) -> None:
        super().__init__(client)
        self.sock = client
        self._deadlines = deadlines
        self._watcher = get_hub().loop.io(client.fileno(), _READ)
        self._ahead = False
        self._looks: Any = None

    def receive(self, timeout_s: float) -> bytes:
        """What the client sends next; empty where it closes, or sends nothing for so long."""
        while True:
            try:
                return self.sock.recv(READ_SIZE)
            except BlockingIOError:
                switch = gevent.getcurrent().switch
                self._watcher.start(switch, _READY)
                self._deadlines.add(id(self), time.monotonic() + timeout_s, switch)
                try:
                    ended = get_hub().switch()
                finally:
                    self._watcher.stop()
                    self._deadlines.remove(id(self))
                if ended == _LATE:
                    return b""

    def wait(self, fd: int | None, event: int, timeout_s: float) -> None:
        hub = get_hub()
        switch = gevent.getcurrent().switch
        watcher = hub.loop.io(fd, _READ if event == select.POLLIN else _WRITE) if fd is not None else None
        timer = None
        if timeout_s > _LONG_S:
            self._deadlines.add(id(self), time.monotonic() + timeout_s, switch)
        else:
            timer = hub.loop.timer(max(timeout_s, 0))
            timer.start(switch, _LATE)
        if watcher is not None:
            watcher.start(switch, _READY)
        if self._ahead:
            self._start_looking(switch)
        else:
            self._watcher.start(self._readable, switch)
        try:
            ended = hub.switch()
        finally:
            self._watcher.stop()
            if self._looks is not None:
                self._looks.stop()
                self._looks.close()
                self._looks = None
            if timer is None:
                self._deadlines.remove(id(self))
            else:
                timer.stop()
                timer.close()
            if watcher is not None:
                watcher.stop()
                watcher.close()
        if ended == _GONE:
            raise ClientGone
        if ended == _LATE:
            raise TimeoutError

    def _readable(self, switch: Callable[[int], None]) -> None:
        if is_gone(self.sock):
            switch(_GONE)
        else:
            self._watcher.stop()  # a request that is sent ahead: the client stays readable, whether it leaves or not
            self._ahead = True
            self._start_looking(switch)

    def _start_looking(self, switch: Callable[[int], None]) -> None:
        self._looks = get_hub().loop.timer(LOOK_EVERY_S, LOOK_EVERY_S)
        self._looks.start(self._look, switch)

    def _look(self, switch: Callable[[int], None]) -> None:
        if has_left(self.sock):
            switch(_GONE)

    def closed(self) -> bool:
        """Whether the client has closed its side; to be asked where `receive` gave nothing."""
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def begin(self) -> None:
        """A request begins: what was sent ahead is read."""
        self._ahead = False

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()


def send_all(client: socket.socket, data: bytes, timeout_s: float) -> None:
    """Send everything over a socket that does not block; a client may take `timeout_s` between two of its reads.

    Raises OSError.
    """
    sent = _send_now(client, data)
    view = memoryview(data)
    while sent < len(data):
        gevent.socket.wait_write(client.fileno(), timeout_s)
        sent += _send_now(client, view[sent:])


def _send_now(client: socket.socket, data: bytes | memoryview) -> int:
    try:
        return client.send(data)
    except BlockingIOError:
        return 0


class HubRelay:
    """Carries a stream from its backend to its client in the hub's callbacks; its greenlet sleeps until the end.

    A switch of greenlets for each event would cost more than the event. Where the client takes less than comes, the
    backend is not read until it has taken it: `run` then sends, as any server would.
    """

    def __init__(
        self,
        body: StreamBody,
        backend: socket.socket,
        watch: HubWatch,
        *,
        timeout_s: float,
    ) -> None:
        """The client, which gets the stream in chunks, may take `timeout_s` between two of its reads. Neither socket
        blocks."""
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
        while not self._body.over:
            self.unsent = self._in_the_hub()
            while self.unsent:
                self.unsent = self.unsent[_send_now(self._client, self.unsent) :]
                if self.unsent:
                    gevent.socket.wait_write(self._client.fileno(), self._timeout_s)

    def _in_the_hub(self) -> bytes:
        """Relay in callbacks until the stream is over or the client takes no more; gives what is left to be sent."""
        hub = get_hub()
        self._switch = gevent.getcurrent().switch
        limit_s, _ = self._body.silence(0.0)
        backend = hub.loop.io(self._backend.fileno(), _READ)
        client = hub.loop.io(self._client.fileno(), _READ)
        # The same sockets without what gevent does around each call: it costs as much as looking at the event.
        raw = [_socket.socket(fileno=sock.fileno()) for sock in (self._backend, self._client)]
        self._receive, self._put = raw[0].recv, raw[1].send
        self._timer = hub.loop.timer(max(limit_s, 0))
        backend.start(self._readable)
        client.start(self._client_readable, client)
        self._timer.start(self._look)
        try:
            outcome = hub.switch()
        finally:
            for watcher in (backend, client, self._timer):
                watcher.stop()
                watcher.close()
            for sock in raw:
                sock.detach()
        if isinstance(outcome, BaseException):
            raise outcome
        return bytes(outcome)

    def _readable(self) -> None:
        data: bytes | None
        try:
            data = self._receive(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = None
        try:
            if data is None:
                shown = chunk(self._body.fail(self._body.broken()))
            else:
                shown = self._body.take_chunk(data)
        except BaseException as error:  # noqa: BLE001 - it belongs to the greenlet that serves the request
            self._switch(error)
            return
        if shown or self._body.over:
            self._send(shown)

    def _send(self, shown: bytes) -> None:
        try:
            sent = self._put(shown) if shown else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self.unsent = shown
            self._switch(ClientGone())
            return
        if sent < len(shown) or self._body.over:
            self._switch(shown[sent:])

    def _client_readable(self, watcher: Any) -> None:
        if is_gone(self._client):
            self._switch(ClientGone())
        else:
            watcher.stop()  # a request that is sent ahead

    def _look(self) -> None:
        """The limit for silence may be over: the timer is not touched at each event, so this sees when the last was."""
        left_s, failure = self._body.silence(self._body.quiet_s())
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
        self._timer = get_hub().loop.timer(left_s)
        self._timer.start(self._look)
