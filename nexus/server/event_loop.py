"""Waits in gevent's hub for a client's bytes, and for a backend while it watches the client.

A greenlet that waits costs one switch to the hub and one back. Watchers and timers are libev's, and
shared where they can be: creating one for each wait would cost more than the wait.
"""

from __future__ import annotations

import _socket
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.hub import get_hub

from nexus.http.client_watch import (
    POLL_INTERVAL_S,
    ClientGone,
    DisconnectWatch,
    Pollable,
    has_closed,
    is_at_eof,
)
from nexus.http.connection_pool import READ_SIZE

READ, WRITE = 1, 2
"""Events of a libev watcher on a descriptor."""
_READY, _TIMED_OUT, _GONE = range(3)
_LONG_S = 1.0
"""Waits with a longer limit share one timer and may end a tick late."""
_NEVER = float("inf")


class WaitScheduler:
    """Ends the waits of one worker at their deadlines, and wakes ready ones in the order in which
    they started.

    One timer checks every deadline, so that a wait needs no timer of its own and may end late by
    one tick.

    libev dispatches ready descriptors in reverse order, which starves the oldest: a waiter that is
    served last in one iteration becomes ready last in the next one too, and needs two iterations
    for each of its requests. So waiters that become ready in one iteration are collected, and woken
    at its end in the order in which they started to wait.

    Attributes:
        started: How many waits have started. Each wait takes the next value as its number.
    """

    def __init__(self) -> None:
        self._watches: set[HubDisconnectWatch] = set()
        self._timer: Any = None
        self.started = 0
        self._ready: list[tuple[int, HubDisconnectWatch]] = []

    def add(self, watch: HubDisconnectWatch) -> None:
        self._watches.add(watch)
        if self._timer is None:
            self._timer = get_hub().loop.timer(POLL_INTERVAL_S, POLL_INTERVAL_S)
            self._timer.start(self._check)

    def remove(self, watch: HubDisconnectWatch) -> None:
        self._watches.discard(watch)

    def _check(self) -> None:
        now = time.monotonic()
        for watch in [one for one in self._watches if one.deadline <= now or one.pipelined]:
            watch.check(now)
        if not self._watches:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def notify_ready(self, watch: HubDisconnectWatch) -> None:
        """Wake this watch at the end of the present iteration of the loop."""
        if not self._ready:
            get_hub().loop.run_callback(self._wake_ready)
        self._ready.append((watch.number, watch))

    def _wake_ready(self) -> None:
        ready, self._ready = self._ready, []
        ready.sort()
        for number, watch in ready:
            watch.wake(number)


class HubReadinessNotifier:
    """Notifies a waiter that a connection is readable, by one watcher for the connection's whole
    life."""

    __slots__ = ("_scheduler", "_watcher", "early", "waiter")

    def __init__(self, fd: int, scheduler: WaitScheduler) -> None:
        self._scheduler = scheduler
        self._watcher = get_hub().loop.io(fd, READ)
        self.early = False
        self.waiter: HubDisconnectWatch | None = None
        self._watcher.start(self._on_readable)

    def _on_readable(self) -> None:
        if self.waiter is None:
            self.pause()
        else:
            self._scheduler.notify_ready(self.waiter)

    def pause(self) -> None:
        """Stop until `resume`: the connection is readable already, or somebody else watches it."""
        self.early = True
        self._watcher.stop()

    def resume(self) -> None:
        self.early = False
        self._watcher.start(self._on_readable)

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()


class HubDisconnectWatch(DisconnectWatch):
    """Waits in the hub. Its watcher on the client lives as long as the client's connection.

    Attributes:
        sock: The client's socket without gevent's wrapper, which costs as much as the system call.
        deadline: When the present wait times out, on the monotonic clock.
        number: The number of the present wait, or of the last one.
        pipelined: The client has sent bytes ahead. It stays readable, so only TCP's state can show
            that it closed.
    """

    def __init__(self, client: socket.socket, scheduler: WaitScheduler) -> None:
        super().__init__(client)
        self.sock = _socket.socket(fileno=client.fileno())
        self.deadline = _NEVER
        self.number = 0
        self.pipelined = False
        self._closed = False
        self._scheduler = scheduler
        self._hub = get_hub()
        self._watcher = self._hub.loop.io(client.fileno(), READ)
        self._watcher_stopped = True
        self._receiving = False
        self._switch: Callable[[int], Any] | None = None
        scheduler.add(self)

    def receive(self, timeout_s: float) -> bytes:
        """The next bytes of the client; empty if it closes, or sends nothing for `timeout_s`."""
        # Wait before the first read: nearly always nothing is there yet, and a client that always
        # has something ready must not starve the others.
        self._receiving, self.pipelined = True, False
        try:
            while self._wait(gevent.getcurrent().switch, timeout_s) == _READY:
                try:
                    return self.sock.recv(READ_SIZE)
                except BlockingIOError:
                    continue
            return b""
        finally:
            self._receiving = False

    def wait_readable(self, source: Pollable, timeout_s: float) -> None:
        switch = gevent.getcurrent().switch
        notifier = source.notifier
        if notifier is None:
            notifier = source.notifier = HubReadinessNotifier(source.fileno(), self._scheduler)
        elif notifier.early:
            notifier.resume()
        notifier.waiter = self
        try:
            result = self._wait(switch, timeout_s)
        finally:
            notifier.waiter = None
        if result != _READY:
            _raise_for(result)

    def wait(self, fd: int | None, event: int, timeout_s: float) -> None:
        switch = gevent.getcurrent().switch
        if fd is None:
            result = self._wait(switch, timeout_s)
        else:
            events = (READ if event & select.POLLIN else 0) | (
                WRITE if event & select.POLLOUT else 0
            )
            watcher = get_hub().loop.io(fd, events)
            watcher.start(switch, _READY)
            try:
                result = self._wait(switch, timeout_s)
            finally:
                watcher.stop()
                watcher.close()
        _raise_for(result)

    def _wait(self, switch: Callable[[int], Any], timeout_s: float) -> int:
        """Sleep in the hub until somebody calls `switch`; returns what it was called with."""
        if self._closed:
            return _GONE
        hub, timer = self._hub, None
        if timeout_s > _LONG_S:
            self.deadline = time.monotonic() + timeout_s
        else:
            timer = hub.loop.timer(max(timeout_s, 0))
            timer.start(switch, _TIMED_OUT)
        if self._watcher_stopped and not self.pipelined:
            self._watcher_stopped = False
            self._watcher.start(self._on_readable)
        scheduler = self._scheduler
        scheduler.started = self.number = scheduler.started + 1
        self._switch = switch
        try:
            return hub.switch()  # type: ignore[no-any-return]
        finally:
            self._switch = None
            self.deadline = _NEVER
            if timer is not None:
                timer.stop()
                timer.close()

    def _on_readable(self) -> None:
        switch = self._switch
        if switch is not None:
            if self._receiving:
                self._scheduler.notify_ready(self)
                return
            if is_at_eof(self.sock):
                switch(_GONE)
                return
            self.pipelined = True
        self._watcher_stopped = True
        self._watcher.stop()

    def wake(self, number: int, result: int = _READY) -> None:
        """End the wait of this number, unless something else ended it in the same iteration of the
        loop."""
        if self._switch is not None and self.number == number:
            self._switch(result)

    def check(self, now: float) -> None:
        """End the present wait if its deadline has passed or its client has closed."""
        switch = self._switch
        if switch is None:
            return
        if self.deadline <= now:
            switch(_TIMED_OUT)
        elif self.pipelined and has_closed(self.sock):
            switch(_GONE)

    def closed(self) -> bool:
        """Whether the client has closed its side. Meant for after `receive` returned nothing."""
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Stop watching the client. Whoever still waits, such as a helper greenlet, gets
        `ClientGone`."""
        self._closed = True
        if self._switch is not None:
            self._hub.loop.run_callback(self.wake, self.number, _GONE)
        self._scheduler.remove(self)
        self._watcher.stop()
        self._watcher.close()
        self.sock.detach()


def _raise_for(result: int) -> None:
    if result == _GONE:
        raise ClientGone
    if result == _TIMED_OUT:
        raise TimeoutError
