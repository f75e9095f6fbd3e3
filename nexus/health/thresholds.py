"""When a backend counts as healthy: a pure state machine over the results of its probes."""

from __future__ import annotations

from dataclasses import dataclass

from nexus.fleet.records import Status


@dataclass(frozen=True, slots=True)
class ProbeState:
    """A backend's status, and how many results in a row have spoken against it."""

    status: Status = "unknown"
    contrary: int = 0

    def after(
        self, success: bool, *, failure_threshold: int, recovery_threshold: int
    ) -> ProbeState:
        """The standing after one more probe. The first result ever decides at once."""
        verdict: Status = "healthy" if success else "unhealthy"
        if self.status in ("unknown", verdict):
            return ProbeState(verdict)
        contrary = self.contrary + 1
        threshold = recovery_threshold if success else failure_threshold
        return ProbeState(verdict) if contrary >= threshold else ProbeState(self.status, contrary)
