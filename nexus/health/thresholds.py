"""When a backend counts as healthy: a pure state machine over the results of its probes."""

from __future__ import annotations

from dataclasses import dataclass

from nexus.fleet.records import Status


@dataclass(frozen=True, slots=True)
class ProbeState:
    """A backend's status.

    Attributes:
        contrary: How many results in a row contradict the status.
    """

    status: Status = "unknown"
    contrary: int = 0

    def after(
        self, success: bool, *, failure_threshold: int, recovery_threshold: int
    ) -> ProbeState:
        """The state after one more probe. The very first result decides at once."""
        shown: Status = "healthy" if success else "unhealthy"
        if self.status in ("unknown", shown):
            return ProbeState(shown)
        contrary = self.contrary + 1
        threshold = recovery_threshold if success else failure_threshold
        return ProbeState(shown) if contrary >= threshold else ProbeState(self.status, contrary)
