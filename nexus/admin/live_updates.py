"""Passing the dashboard's state on to its viewers: one look for a new one in each process, however many there are."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nexus.fleet.dashboard_state import DashboardState, read_live

_LOOK_EVERY_S = 0.25
_SIGN_OF_LIFE_S = 5.0
_SPREAD_S = 0.2
"""Over so much time viewers get a new state, so that many of them do not make a request wait for all."""


class Live:
    """The viewers of one process. Threads of Python's: greenlets where gevent has patched them."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._news = threading.Condition()
        self._state: DashboardState | None = None
        self._viewers = 0
        self._looking = False
        self.stopping: Callable[[], bool] = lambda: False
        """Whether the process is to end; its viewers then find another one. Set by who knows."""

    def state(self) -> DashboardState | None:
        """The state as it stands now."""
        return read_live(self._run_dir, unlike=self._state)

    def events(self) -> Iterator[bytes]:
        """One viewer's server-sent events: what there was, then each new state, until it leaves or the process ends."""
        state = self.state()
        if state is not None:
            yield (
                b"event: history\ndata: "
                + state.history
                + b"\n\nevent: tick\ndata: "
                + state.tick
                + b"\n\n"
            )
        else:
            yield b": nothing to show yet\n\n"
        self._enter()
        try:
            while not self.stopping():
                with self._news:
                    self._news.wait(_SIGN_OF_LIFE_S)
                    newest = self._state
                if self.stopping():
                    break
                if newest is None or (state is not None and newest.written_ns == state.written_ns):
                    yield b": still here\n\n"
                    continue
                if state is None:
                    yield b"event: history\ndata: " + newest.history + b"\n\n"
                state = newest
                time.sleep(random.uniform(0, _SPREAD_S))
                yield b"event: tick\ndata: " + state.tick + b"\n\n"
        finally:
            with self._news:
                self._viewers -= 1

    def _enter(self) -> None:
        with self._news:
            self._viewers += 1
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="nexus-live", daemon=True).start()

    def _look(self) -> None:
        """Wake the viewers at each new state, and at the end; runs while there are any."""
        pause = threading.Event()
        while True:
            pause.wait(_LOOK_EVERY_S)
            with self._news:
                if not self._viewers:
                    self._looking = False
                    return
                newest = self.state()
                if newest is not self._state or self.stopping():
                    self._state = newest
                    self._news.notify_all()
