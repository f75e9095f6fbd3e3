"""The fleet that is probed now: results of probes change it, and changes are published."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import gevent
from msgspec.structs import replace

from nexus.config.overlay import Overlay, OverlayLayer
from nexus.fleet.circuit_breaker import Event, report
from nexus.fleet.circuits import CircuitTable
from nexus.health.fleet import Fleet
from nexus.health.probe_rounds import ProbeRounds
from nexus.health.prober import ProbeOutcome
from nexus.health.publisher import Publisher

log = logging.getLogger("nexus.health")

_PROBE_REQUESTS_EVERY_S = 5.0
"""Requests cause at most one extra probe of a backend in this time."""
_GATHER_S = 0.05
"""Each snapshot has the whole fleet: one for each result of hundreds of backends would hold the
process up for many seconds."""


class FleetMonitor:
    """Probes a fleet and publishes it.

    Attributes:
        fleet: Probed and published once it was adopted.
    """

    def __init__(self, publisher: Publisher, environ: Mapping[str, str], overlay: Overlay) -> None:
        """Raises `ConfigError`."""
        self._publisher = publisher
        self.fleet = Fleet(overlay, now=time.time(), before=publisher.snapshot)
        self.rounds = ProbeRounds(
            environ,
            on_result=self._apply_result,
            on_details=self._apply_details,
            on_dialects=self._apply_dialects,
            on_round=self._end_round,
        )
        self._last_requested: dict[str, float] = {}
        self._publishing_soon = False

    def new_fleet(self, overlay: Overlay) -> Fleet:
        """A fleet of this configuration, which keeps what is known. Raises `ConfigError`."""
        now = time.time()
        # Not the last published one, which has none of the results of the present round.
        return Fleet(overlay, now=now, before=self.fleet.snapshot(revision=0, now=now))

    def adopt(self, fleet: Fleet) -> bool:
        """Probe and publish this fleet from now on; returns False if it cannot be published."""
        self.fleet = fleet
        self.rounds.follow(fleet)
        idle_columns = self._publisher.generation.context.slot_lease.table.idle_columns
        for column in fleet.assign_columns(idle_columns):
            self._circuits.reset(column, time.monotonic_ns())
        return self.publish()

    def publish(self) -> bool:
        return self._publisher.publish(self.fleet)

    def _publish_soon(self) -> None:
        """Publish what a probe showed, together with what others show within a moment."""
        if not self._publishing_soon:
            self._publishing_soon = True
            gevent.spawn_later(_GATHER_S, self._publish_results)

    def _publish_results(self) -> None:
        self._publishing_soon = False
        self.publish()

    def enter_generation(self) -> None:
        """Drop what belongs to the gateway's last run: unsaved changes, labels of absent names."""
        if self.fleet.overlay.session != OverlayLayer():
            self.adopt(self.new_fleet(replace(self.fleet.overlay, session=OverlayLayer())))
        self.fleet.forget_absent_labels()
        self.publish()

    def label_models(self, names: list[str]) -> None:
        """Give label values to models that workers request them for."""
        if names and self.fleet.label_models(names):
            self.publish()

    def probe_requested(self) -> None:
        """Probe backends whose responses contradict their last probe."""
        now = time.monotonic()
        for name, backend in self.fleet.backends.items():
            due = now - self._last_requested.get(name, -_PROBE_REQUESTS_EVERY_S)
            if due >= _PROBE_REQUESTS_EVERY_S and self._circuits.pop_probe_request(backend.column):
                self._last_requested[name] = now
                self.probe_soon(name)

    def probe_soon(self, name: str) -> None:
        gevent.spawn(self.rounds.probe, name)

    def probe_all_soon(self) -> None:
        gevent.spawn(self.rounds.round)

    @property
    def _circuits(self) -> CircuitTable:
        return self._publisher.generation.context.slot_lease.circuits

    def _end_round(self) -> None:
        self._publisher.record_probe_round()
        self.fleet.retire_labels(monotonic=time.monotonic())
        self.publish()

    def _apply_result(self, name: str, result: ProbeOutcome) -> None:
        """Apply one probe's result; publish the fleet at once if it changed."""
        fleet, before = self.fleet, self.fleet.backends[name]
        if result.latency_s is not None:
            recorder = self._publisher.generation.context.recorder
            recorder.probe_answered(fleet.label(name), result.latency_s)
        change = fleet.apply_result(name, result, now=time.time())
        if change:
            was, status = change
            write = log.info if status == "healthy" else log.warning
            write(
                f"backend is now {status}",
                extra={"backend": name, "was": was, "why": result.error},
            )
            if status == "healthy":
                self._report(Event.HEALTH_RECOVERED, before.column)
        elif result.success:
            self._report(Event.HEALTH_PASSED, before.column)
        elif not fleet.config.health_check.enabled and result.error != before.last_error:
            log.warning(
                "the backend's models cannot be read", extra={"backend": name, "why": result.error}
            )
        if change or fleet.backends[name].models is not before.models:
            self._publish_soon()

    def _report(self, event: Event, column: int) -> None:
        """Report what a probe showed to the backend's circuit breaker."""
        lease, config = self._publisher.generation.context.slot_lease, self.fleet.config
        now_ns = time.monotonic_ns()
        report(event, column, lease.circuits, lease.table, config=config, now_ns=now_ns)

    def _apply_details(self, name: str, result: ProbeOutcome) -> None:
        if self.fleet.apply_models(name, result):
            self._publish_soon()

    def _apply_dialects(self, name: str, dialects: frozenset[str]) -> None:
        if self.fleet.apply_dialects(name, dialects):
            log.info(
                "a backend speaks other APIs than expected",
                extra={"backend": name, "apis": ", ".join(sorted(dialects))},
            )
            self._publish_soon()
