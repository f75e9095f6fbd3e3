"""Looking up backends' names, within a limit and watching the client.

The system's resolver can neither be interrupted nor be given a limit. Each name that is being looked up therefore has
a thread of its own, shared by all who wait for that name. A name server that is silent holds up its own names only.
"""

from __future__ import annotations

import _socket
import _thread
import contextlib
import os
import select
import socket
import sys
from collections.abc import Callable, Sequence

from nexus.http.client_watch import DisconnectWatch

AddrInfo = tuple[int, int, int, str, tuple[object, ...]]
"""As `socket.getaddrinfo` gives it."""
_Key = tuple[bytes, int]


class ResolverTimeout(TimeoutError):
    """The resolver did not answer in time."""


class _Lookup:
    """A question that is being asked. Its eventfd becomes readable, for good, when the answer is there."""

    done = -1

    def __init__(self) -> None:
        self.done = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.found: Sequence[AddrInfo] = []
        self.error: Exception | None = None

    def __del__(self) -> None:
        if self.done >= 0:
            os.close(
                self.done
            )  # the thread and all who wait hold a reference, so nobody uses the number any more


class Resolver:
    """Safe from any greenlet or thread. It takes no lock: under gevent a lock would not work across threads."""

    def __init__(self, ask: Callable[[bytes, int], Sequence[AddrInfo]] | None = None) -> None:
        """`ask` stands in for the system's resolver."""
        self._ask = ask or _ask_the_system
        self._going: dict[_Key, _Lookup] = {}

    def resolve(
        self, host: str, port: int, watch: DisconnectWatch, timeout_s: float
    ) -> Sequence[AddrInfo]:
        """The addresses of a host. Raises `ClientGone`, `ResolverTimeout`, or the resolver's error."""
        if known := _of_literal(host, port):
            return known
        lookup = self._join((host.encode("idna"), port))
        try:
            watch.wait(lookup.done, select.POLLIN, timeout_s)
        except TimeoutError:
            raise ResolverTimeout from None
        if lookup.error is not None:
            raise lookup.error
        return lookup.found

    def _join(self, key: _Key) -> _Lookup:
        """The question that is being asked already, or a new one."""
        lookup = self._going.get(key)
        if lookup is None:
            mine = _Lookup()
            lookup = self._going.setdefault(key, mine)
            if lookup is mine:
                try:
                    _start_thread(self._look_up, (key, mine))
                except RuntimeError as error:
                    del self._going[key]
                    raise OSError(str(error)) from error
        return lookup

    def _look_up(self, key: _Key, lookup: _Lookup) -> None:
        try:
            lookup.found = self._ask(*key)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait
            lookup.error = error
        del self._going[key]
        os.eventfd_write(lookup.done, 1)


def _start_thread(function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """Start a thread of the operating system. Where gevent has patched Python, its threads are greenlets: they would
    ask through the few threads that gevent's hub has for all that blocks."""
    patch = sys.modules.get("gevent.monkey")
    start = patch.get_original("_thread", "start_new_thread") if patch else _thread.start_new_thread
    start(function, arguments)


def _ask_the_system(host: bytes, port: int) -> Sequence[AddrInfo]:
    return _socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)


def _of_literal(host: str, port: int) -> Sequence[AddrInfo]:
    """An address that is written as such, for which nobody need be asked; empty for a name."""
    if not (":" in host or host[-1:].isdigit()):
        return []
    with contextlib.suppress(OSError, UnicodeError):
        return _socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    return []
