"""The gateway with no more metrics than routing needs, to measure what metrics cost.

`python -m bench.without_metrics serve …` is `nexus serve …` with workers of this kind.
"""

from __future__ import annotations

import sys
import time

import nexus.admin.context
import nexus.app
from nexus.fleet.outcome import Outcome
from nexus.metrics.recorder import Recorder


class Silent(Recorder):
    """Keeps the row of requests in flight, and how attempts ended: limits and circuits live on
    them."""

    def request_started(self, endpoint: str) -> None:  # noqa: ARG002
        self._row.request_started(time.monotonic_ns())

    def attempt_ended(
        self,
        column: int,
        backend: str,  # noqa: ARG002
        outcome: str,  # noqa: ARG002
        *,
        success: bool,
        in_flight: bool = True,
    ) -> None:
        if in_flight:
            self._row.attempt_ended(column)
        if success:
            self._row.count_outcome(column, time.monotonic_ns(), success=True)

    def attempt_started(self, column: int | None, decision_s: float) -> None:  # noqa: ARG002
        if column is not None:
            self._row.attempt_started(column)

    def routing_failed(self, decision_s: float) -> None:
        pass

    def request_finished(self, outcome: Outcome) -> None:  # noqa: ARG002
        self._row.request_finished()


nexus.admin.context.Recorder = Silent  # type: ignore[misc]
create_app = nexus.app.create_app


def main() -> None:
    from nexus.cli import main as command
    from nexus.server import supervisor

    gunicorn = supervisor._gunicorn_command
    supervisor._gunicorn_command = lambda: [*gunicorn()[:-1], "bench.without_metrics:create_app()"]
    command()


if __name__ == "__main__":
    sys.exit(main())
