"""Rounds of probes: every backend of the fleet is probed once per interval, many at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import gevent
import gevent.event
from gevent.pool import Pool

from nexus.health.fleet import Fleet
from nexus.health.prober import ProbeOutcome, Prober
from nexus.http.connection_pool import ConnectionPool

log = logging.getLogger("nexus.health")

_MAX_CONCURRENT = 64


class ProbeRounds:
    """Probes the backends of the fleet that it follows.

    Attributes:
        first_done: Set when the first round has ended.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        on_result: Callable[[str, ProbeOutcome], None],
        on_details: Callable[[str, ProbeOutcome], None],
        on_dialects: Callable[[str, frozenset[str]], None],
        on_round: Callable[[], None],
    ) -> None:
        """`on_result` gets each backend's name and result at once, `on_details` later its details,
        `on_dialects` what it was found to speak.

        `on_round` is called at the end of a round in which all backends of the fleet were probed.
        Results of a backend that was removed or changed meanwhile are dropped.
        """
        self._environ = environ
        self._on_result = on_result
        self._on_details = on_details
        self._on_dialects = on_dialects
        self._on_round = on_round
        self._fleet: Fleet | None = None
        self._connections = ConnectionPool(time.monotonic)
        self._probers: dict[str, Prober] = {}
        self._probing: set[Prober] = set()
        self._fetching: set[Prober] = set()
        self.first_done = gevent.event.Event()

    def follow(self, fleet: Fleet) -> None:
        """Probe this fleet from now on."""
        self._fleet, before = fleet, self._probers
        self._probers = {}
        for name, backend in fleet.backends.items():
            old = before.get(name)
            if old is None or old.config != backend.config:
                old = Prober(
                    backend.config, self._environ, self._connections, pause=lambda: gevent.sleep(0)
                )
            self._probers[name] = old

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
        probers = self._probers
        pool = Pool(_MAX_CONCURRENT)
        for name in probers:
            pool.spawn(self.probe, name)
        pool.join()
        if {*self._probers.values()} <= {*probers.values()}:
            self._on_round()
        self.first_done.set()

    def probe(self, name: str) -> None:
        """Probe one backend now."""
        fleet, prober = self._fleet, self._probers.get(name)
        if fleet is None or prober is None:
            return  # it was removed while it waited
        timeout_s = fleet.config.health_check.timeout_seconds
        if prober in self._probing:
            return  # a probe is in progress, whose result is as good
        self._probing.add(prober)
        try:
            result = prober.probe(timeout_s)
        finally:
            self._probing.discard(prober)
        if prober is self._probers.get(name):
            self._on_result(name, result)
            if prober not in self._fetching:
                gevent.spawn(self._fetch_details, name, prober, timeout_s, alive=result.success)

    def _fetch_details(self, name: str, prober: Prober, timeout_s: float, *, alive: bool) -> None:
        """Fetch details one after the other, so that a backend has little work with them."""
        self._fetching.add(prober)
        try:
            while prober is self._probers.get(name) and (result := prober.more_details(timeout_s)):
                if prober is self._probers.get(name):
                    self._on_details(name, result)
            if alive and prober is self._probers.get(name) and (fleet := self._fleet) is not None:
                found = prober.ask_dialects(fleet.backends[name].spoken, timeout_s)
                if found is not None and prober is self._probers.get(name):
                    self._on_dialects(name, found)
        except Exception:
            log.exception("details of a backend's models cannot be read", extra={"backend": name})
        finally:
            self._fetching.discard(prober)
