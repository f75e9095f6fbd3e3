"""Resolves the host names of backends, within a time limit and while watching the client.

The system's resolver has no time limit and cannot be interrupted. So each lookup runs in its own
thread, which all waiters for that name share. A silent name server delays only its own names.
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
"""An entry as `socket.getaddrinfo` returns it."""
_Key = tuple[bytes, int]


class ResolverTimeout(TimeoutError):
    """The resolver did not respond in time."""


class _Lookup:
    """A lookup in progress. `finished` is an eventfd that becomes and stays readable at its end."""

    finished = -1

    def __init__(self) -> None:
        self.finished = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.addresses: Sequence[AddrInfo] = []
        self.error: Exception | None = None

    def __del__(self) -> None:
        # The thread and all waiters hold a reference, so nobody uses the descriptor any more.
        if self.finished >= 0:
            os.close(self.finished)


class Resolver:
    """Resolves names. Safe from any greenlet and thread.

    It uses no lock: under gevent, a lock does not work between threads. `dict.setdefault` is
    atomic.
    """

    def __init__(self, lookup: Callable[[bytes, int], Sequence[AddrInfo]] | None = None) -> None:
        """`lookup` replaces the system's resolver."""
        self._lookup = lookup or _system_lookup
        self._lookups: dict[_Key, _Lookup] = {}

    def resolve(
        self, host: str, port: int, watch: DisconnectWatch, timeout_s: float
    ) -> Sequence[AddrInfo]:
        """The addresses of a host.

        Raises `ClientGone`, `ResolverTimeout`, or the error of the system's resolver.
        """
        if literal := _parse_literal(host, port):
            return literal
        lookup = self._start_or_join((host.encode("idna"), port))
        try:
            watch.wait(lookup.finished, select.POLLIN, timeout_s)
        except TimeoutError:
            raise ResolverTimeout from None
        if lookup.error is not None:
            raise lookup.error
        return lookup.addresses

    def _start_or_join(self, key: _Key) -> _Lookup:
        lookup = self._lookups.get(key)
        if lookup is None:
            started = _Lookup()
            lookup = self._lookups.setdefault(key, started)
            if lookup is started:
                try:
                    _start_thread(self._run, (key, started))
                except RuntimeError as error:
                    del self._lookups[key]
                    raise OSError(str(error)) from error
        return lookup

    def _run(self, key: _Key, lookup: _Lookup) -> None:
        try:
            lookup.addresses = self._lookup(*key)
        except Exception as error:  # noqa: BLE001 - raised in each waiter
            lookup.error = error
        del self._lookups[key]
        os.eventfd_write(lookup.finished, 1)


def _start_thread(function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """Start a thread of the operating system.

    If gevent has patched Python, its threads are greenlets, and blocking lookups would share the
    few threads of gevent's pool.
    """
    patch = sys.modules.get("gevent.monkey")
    start = patch.get_original("_thread", "start_new_thread") if patch else _thread.start_new_thread
    start(function, arguments)


def _system_lookup(host: bytes, port: int) -> Sequence[AddrInfo]:
    return _socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)


def _parse_literal(host: str, port: int) -> Sequence[AddrInfo]:
    """The address that `host` is, without a lookup; empty for a name."""
    if not (":" in host or host[-1:].isdigit()):
        return []
    with contextlib.suppress(OSError, UnicodeError):
        return _socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    return []
