"""A child process: started in a process group of its own, watched, and restarted with a backoff."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping

log = logging.getLogger("nexus.serve")

_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 15.0
_STABLE_S = 30.0
"""After a child has run for so long, the backoff starts from the beginning."""


class Child:
    """A supervised program."""

    def __init__(
        self, name: str, command: list[str], environ: Mapping[str, str], *, capture: bool = False
    ) -> None:
        """`command` are arguments for Python; `capture` pipes its standard output to this
        process."""
        self.name = name
        self._command = command
        self._environ = {**environ, "NEXUS_SUPERVISED": str(os.getpid())}
        self._capture = capture
        self._backoff_s = _FIRST_BACKOFF_S
        self._restart_at: float | None = None
        self.starts = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        self.starts += 1
        self._started_at = time.monotonic()
        return subprocess.Popen(
            [sys.executable, *self._command],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if self._capture else None,
            text=True,
            process_group=0,  # Ctrl-C reaches the parent alone, which ends its children in order
        )

    def age_s(self) -> float:
        """Seconds since its last start."""
        return time.monotonic() - self._started_at

    def pin(self, host: str, port: int) -> None:
        """Use the address of the first start for later ones."""
        self._command += ["--host", host, "--port", str(port)]

    def keep_running(self) -> int | None:
        """Restart it if it has ended and its backoff is over.

        Returns its exit status when this call is the first to see that it has ended.
        """
        status = self.process.poll()
        if status is None:
            return None
        now = time.monotonic()
        if self._restart_at is None:
            if now - self._started_at > _STABLE_S:
                self._backoff_s = _FIRST_BACKOFF_S
            self._restart_at = now + self._backoff_s
            self._backoff_s = min(self._backoff_s * 2, _MAX_BACKOFF_S)
            return status
        if now >= self._restart_at:
            self._restart_at = None
            if self.process.stdout is not None:
                self.process.stdout.close()
            try:
                self.process = self._start()
            except OSError as error:  # no memory, or Python is just being replaced: tried again
                log.error(f"the {self.name} cannot be started", extra={"why": error})
        return None

    def stop(self, timeout_s: float) -> None:
        """Send TERM, and KILL if it has not ended by `timeout_s`."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
