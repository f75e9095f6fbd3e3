"""Telling the service manager how this process is, as sd_notify(3) does: datagrams to
`$NOTIFY_SOCKET`.

Without the variable nothing is sent; a manager that does not listen is no reason to fail.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping


class Notifier:
    """Where to send; made once, before processes are forked that must not find the variable."""

    def __init__(self, address: str | None, *, watchdog_s: float | None = None) -> None:
        self._address = address
        self._status = ""
        self.watchdog_s = watchdog_s if address else None
        """The manager ends this process when it hears nothing for so long; None where it does
        not watch."""

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Notifier:
        """The one that the environment names, and no longer names after this: whoever else looks
        there, a library or a child, would speak for the service."""
        watchdog_s = _watchdog_s(environ)
        environ.pop("WATCHDOG_USEC", None)
        environ.pop("WATCHDOG_PID", None)
        return cls(environ.pop("NOTIFY_SOCKET", None), watchdog_s=watchdog_s)

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return self._address is not None

    def ready(self, status: str) -> None:
        self._status = status
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Until the next `ready()`."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, status: str) -> None:
        """One line for people; sent where it differs from the last one."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def feed_watchdog(self, sleep: Callable[[float], object]) -> None:
        """Say that this process lives for as long as its event loop does: run it there, with the
        loop's `sleep`."""
        while self.watchdog_s is not None:
            self._send("WATCHDOG=1")
            sleep(self.watchdog_s / 3)

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.sendall("\n".join(lines).encode())


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    interval, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    return int(interval) / 1e6 if interval.isdigit() and pid in ("", str(os.getpid())) else None
