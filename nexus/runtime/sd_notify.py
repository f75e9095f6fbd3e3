"""Notifies the service manager by datagrams to `$NOTIFY_SOCKET`, as sd_notify(3) does.

Without the variable nothing is sent. A manager that does not listen causes no error.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping


class Notifier:
    """Sends notifications. Made once, before other processes are forked."""

    def __init__(self, address: str | None, *, watchdog_s: float | None = None) -> None:
        self._address = address
        self._status = ""
        self.watchdog_s = watchdog_s if address else None
        """The manager ends this process after so long without a heartbeat; None: never."""

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Notifier:
        """The notifier that the environment names.

        The variables are removed, so that no library or child can notify in this process's name.
        """
        watchdog_s = _watchdog_s(environ)
        environ.pop("WATCHDOG_USEC", None)
        environ.pop("WATCHDOG_PID", None)
        return cls(environ.pop("NOTIFY_SOCKET", None), watchdog_s=watchdog_s)

    def __bool__(self) -> bool:
        """Whether there is a service manager."""
        return self._address is not None

    def ready(self, status: str) -> None:
        self._status = status
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Report a reload, which lasts until the next `ready()`."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, status: str) -> None:
        """Send a line for people if it differs from the last one."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status}")

    def feed_watchdog(self, sleep: Callable[[float], object]) -> None:
        """Send heartbeats. Run it in the event loop, so that they stop if the loop does."""
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
