"""How slowly a client may send the body of its request."""

from __future__ import annotations

import msgspec

from nexus.config.records import Server

_GRACE_S = 5.0
"""For so long a body may come at any rate: connections start slowly."""


class BodyPace(msgspec.Struct):
    """The limits of one body that began to be read at `began`, on the monotonic clock."""

    began: float
    server: Server

    def left_s(self, now: float, received: int) -> float:
        """How long to wait for more, with so many bytes received; the body is too slow at zero and below."""
        server = self.server
        ends = self.began + server.body_timeout_seconds
        if server.min_body_bytes_per_second:
            ends = min(ends, self.began + _GRACE_S + received / server.min_body_bytes_per_second)
        return min(ends - now, server.client_timeout_seconds)
