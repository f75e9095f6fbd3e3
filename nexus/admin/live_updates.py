"""Server-sent events for the dashboard: one poll of its state in each process, for all viewers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nexus.fleet.dashboard_state import DashboardState, read_state

_POLL_INTERVAL_S = 0.25
_KEEPALIVE_S = 5.0
_SPREAD_S = 0.2
"""Viewers get a new state spread over this time, so that many of them do not delay a request."""


class LiveUpdates:
    """The viewers of one process. Uses threads, which are greenlets if gevent has patched them.

    Attributes:
        stopping: Whether the process is about to end. Its viewers then connect to another one.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._changed = threading.Condition()
        self._state: DashboardState | None = None
        self._viewers = 0
        self._polling = False
        self.stopping: Callable[[], bool] = lambda: False

    def state(self) -> DashboardState | None:
        """Read the current state."""
        return read_state(self._run_dir, known=self._state)

    def events(self) -> Iterator[bytes]:
        """One viewer's events: the backlog, then each new state, until the process ends."""
        state = self.state()
        if state is None:
            yield b": nothing to show yet\n\n"
        else:
            yield _event(b"history", state.history) + _event(b"tick", state.tick)
        self._add_viewer()
        try:
            while not self.stopping():
                with self._changed:
                    self._changed.wait(_KEEPALIVE_S)
                    newest = self._state
                if self.stopping():
                    break
                if newest is None or (state is not None and newest.written_ns == state.written_ns):
                    yield b": still here\n\n"
                    continue
                if state is None:
                    yield _event(b"history", newest.history)
                state = newest
                time.sleep(random.uniform(0, _SPREAD_S))
                yield _event(b"tick", state.tick)
        finally:
            with self._changed:
                self._viewers -= 1

    def _add_viewer(self) -> None:
        with self._changed:
            self._viewers += 1
            if not self._polling:
                self._polling = True
                threading.Thread(target=self._poll, name="nexus-live", daemon=True).start()

    def _poll(self) -> None:
        """Wake the viewers at each new state, and at the end. Ends when there are none."""
        pause = threading.Event()
        while True:
            pause.wait(_POLL_INTERVAL_S)
            with self._changed:
                if not self._viewers:
                    self._polling = False
                    return
                newest = self.state()
                if newest is not self._state or self.stopping():
                    self._state = newest
                    self._changed.notify_all()


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: " + name + b"\ndata: " + data + b"\n\n"
