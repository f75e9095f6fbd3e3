"""Child processes under one parent: started in a group of their own, watched, and ended with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0
_SETTLED_S = 30.0


class Child:
    """A supervised program. `restart()` waits longer from one quick death to the next."""

    def __init__(
        self, name: str, command: list[str], environ: Mapping[str, str], *, capture: bool = False
    ) -> None:
        self.name = name
        self._command = command
        self._environ = {**environ, "NEXUS_SUPERVISED": str(os.getpid())}
        self._capture = capture
        self._pause_s = _FIRST_PAUSE_S
        self._due = 0.0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        self._began = time.monotonic()
        return subprocess.Popen(
            [sys.executable, *self._command],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if self._capture else None,
            text=True,
            process_group=0,  # Ctrl-C reaches the parent alone, which ends its children in order
        )

    def ended(self) -> int | None:
        """Its exit status once it has ended."""
        return self.process.poll()

    @property
    def waiting(self) -> bool:
        """Whether it has ended and its new start is due later."""
        return self._due > 0

    def age_s(self) -> float:
        """Seconds since its last start."""
        return time.monotonic() - self._began

    def pin(self, host: str, port: int) -> None:
        """Have later starts use the address that the first one was given."""
        self._command += ["--host", host, "--port", str(port)]

    def due(self) -> float:
        """After it has ended: when, on the monotonic clock, it should be started again."""
        if not self._due:
            if time.monotonic() - self._began > _SETTLED_S:
                self._pause_s = _FIRST_PAUSE_S
            self._due = time.monotonic() + self._pause_s
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        return self._due

    def restart(self) -> None:
        self._due = 0.0
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = self._start()

    def stop(self, timeout_s: float) -> None:
        """TERM, and KILL where that does not help in time."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
