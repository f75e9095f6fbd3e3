"""Rounds of probes: every backend of the fleet is probed once per interval, many at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import gevent
import gevent.event
from gevent.pool import Pool

from nexus.health.fleet import Fleet
from nexus.health.prober import Prober, Result

_MOST_PROBES_AT_ONCE = 64


class Rounds:
    """Probes the backends of the fleet that it follows.

    Attributes:
        first_done: Set when the first round has ended.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        on_result: Callable[[str, Result], None],
        on_round: Callable[[], None],
    ) -> None:
        """`on_result` gets each backend's name and result at once; `on_round` is called at the end of a round.

        Neither is called for a fleet that was replaced meanwhile.
        """
        self._environ = environ
        self._on_result = on_result
        self._on_round = on_round
        self._fleet: Fleet | None = None
        self._probers: dict[str, Prober] = {}
        self.first_done = gevent.event.Event()

    def follow(self, fleet: Fleet) -> None:
        """Probe this fleet from now on."""
        for prober in self._probers.values():
            prober.close()
        self._fleet = fleet
        self._probers = {name: Prober(watched.config, self._environ) for name, watched in fleet.backends.items()}

    def run(self) -> None:
        """Probe round after round, without end."""
        while True:
            started = time.monotonic()
            self.round()
            assert self._fleet is not None
            interval_s = self._fleet.config.health_check.interval_seconds
            gevent.sleep(max(0.0, started + interval_s - time.monotonic()))

    def round(self) -> None:
        """Probe all backends once, side by side."""
        fleet = self._fleet
        pool = Pool(_MOST_PROBES_AT_ONCE)
        for name in list(self._probers):
            pool.spawn(self.probe, name)
        pool.join()
        if fleet is self._fleet:
            self._on_round()
        self.first_done.set()

    def probe(self, name: str) -> None:
        """Probe one backend now."""
        fleet, prober = self._fleet, self._probers.get(name)
        if fleet is None or prober is None:
            return  # removed while it waited for its turn
        result = prober.probe(fleet.config.health_check.timeout_seconds)
        if fleet is self._fleet:
            self._on_result(name, result)
