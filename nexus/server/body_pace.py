"""How slowly a client may send the body of its request."""

from __future__ import annotations

import msgspec

from nexus.config.records import Server

_GRACE_S = 5.0
"""The minimum rate holds only after this time: connections start slowly."""


class BodyPace(msgspec.Struct):
    """The time limits of one body.

    Attributes:
        started_at: When reading started, on the monotonic clock.
        server: The settings that hold the limits.
    """

    started_at: float
    server: Server

    def remaining_s(self, now: float, received: int) -> float:
        """How long to wait for more after `received` bytes; 0 or less if it is too slow."""
        server = self.server
        ends = self.started_at + server.body_timeout_seconds
        if rate := server.min_body_bytes_per_second:
            ends = min(ends, self.started_at + _GRACE_S + received / rate)
        return min(ends - now, server.client_timeout_seconds)
