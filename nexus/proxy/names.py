"""Looking up backends' names, within a limit and watching the client.

The system's resolver can be neither interrupted nor given a limit, and gevent asks it from a few threads only. So it is
asked once for each name at a time, however many requests wait for the answer, and none waits for longer than it may.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Sequence

from nexus.proxy.client import Watch

Place = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[object, ...]]
"""As `socket.getaddrinfo` gives it."""
_Key = tuple[str, int]


class _Lookup:
    """One question that is being asked, and the bells of those who wait for its answer."""

    def __init__(self) -> None:
        self.bells: set[int] = set()
        self.found: Sequence[Place] = []
        self.error: Exception | None = None


class Names:
    """Safe from any greenlet or thread."""

    def __init__(self, ask: Callable[[str, int], Sequence[Place]] | None = None) -> None:
        """`ask` stands in for the system's resolver."""
        self._ask = ask or _ask_the_system
        self._lock = threading.Lock()
        self._going: dict[_Key, _Lookup] = {}

    def find(self, host: str, port: int, watch: Watch, timeout_s: float) -> Sequence[Place]:
        """Where the host can be reached. Raises `ClientGone`, `TimeoutError`, or the resolver's error."""
        if known := _of_literal(host, port):
            return [known]
        bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        lookup = self._join((host, port), bell)
        try:
            watch.wait(bell, select.POLLIN, timeout_s)
        finally:
            with self._lock:
                lookup.bells.discard(bell)
            os.close(bell)
        if lookup.error is not None:
            raise lookup.error
        return lookup.found

    def _join(self, key: _Key, bell: int) -> _Lookup:
        """The question that is being asked already, or a new one."""
        with self._lock:
            lookup = self._going.get(key)
            if lookup is None:
                lookup = self._going[key] = _Lookup()
                threading.Thread(target=self._look_up, args=(key, lookup), daemon=True).start()
            lookup.bells.add(bell)
            return lookup

    def _look_up(self, key: _Key, lookup: _Lookup) -> None:
        try:
            lookup.found = self._ask(*key)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait
            lookup.error = error
        with self._lock:
            del self._going[key]
            for bell in lookup.bells:
                os.eventfd_write(bell, 1)


def _ask_the_system(host: str, port: int) -> Sequence[Place]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _of_literal(host: str, port: int) -> Place | None:
    """An address that is written as such, for which nobody need be asked."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            place = (host, port) if family == socket.AF_INET else (host, port, 0, 0)
            return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place
    return None
