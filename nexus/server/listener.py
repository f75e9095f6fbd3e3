"""The server of one listening socket."""

from __future__ import annotations

import contextlib
from typing import Any

from gevent.server import StreamServer

from nexus.http.exhaustion import ExhaustionMonitor

_RETRY_S = 0.1


class DrainingListener(StreamServer):
    """Serves its backlog before it closes, and pauses while no descriptor is free."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._exhaustion = ExhaustionMonitor()

    def do_read(self) -> Any:
        """Accept a connection. If no descriptor is free, leave it in the backlog and pause."""
        try:
            return super().do_read()
        except OSError as error:
            if not self._exhaustion.detects(error):
                raise
            self.stop_accepting()
            self._timer = self.loop.timer(_RETRY_S)
            self._timer.start(self._start_accepting_if_started)  # type: ignore[attr-defined,call-arg]
            return None

    def close(self) -> None:
        """Accept the connections in the backlog, then stop listening.

        If the last process that listens closes with connections in its backlog, the kernel resets
        them. A balancer that has sent a request on one does not know whether it was served, so
        it must not send it again.
        """
        if not self.closed:
            self.stop_accepting()
            with contextlib.suppress(OSError):
                while not self.full() and (accepted := self.do_read()):
                    self.do_handle(*accepted)
        super().close()
