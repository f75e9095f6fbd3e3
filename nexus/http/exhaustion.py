"""Detects that the process ran out of descriptors or memory for sockets.

That is the gateway's own failure. It never counts against a backend.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import time

from nexus.errors import RequestFailed

log = logging.getLogger("nexus.proxy")

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_LOG_INTERVAL_S = 1.0


class ExhaustionMonitor:
    """Recognizes errors that exhaustion causes, and logs them at most once a second."""

    def __init__(self) -> None:
        self._logged_at = -_LOG_INTERVAL_S

    def detects(self, error: Exception) -> bool:
        """Whether `error` means that resources are exhausted; if so, it is logged."""
        if isinstance(error, socket.gaierror):
            # A resolver without descriptors only says that the lookup failed.
            exhausted = _no_descriptor_left()
        else:
            exhausted = not isinstance(error, ssl.SSLError) and (
                getattr(error, "errno", None) in _EXHAUSTED
            )
        if exhausted and time.monotonic() - self._logged_at >= _LOG_INTERVAL_S:
            self._logged_at = time.monotonic()
            log.error(
                "descriptors or memory for connections ran out",
                extra={"pid": os.getpid(), "why": error},
            )
        return exhausted

    @staticmethod
    def failure() -> RequestFailed:
        return RequestFailed(
            "at_capacity",
            "The gateway has no descriptors left for a connection to a backend; try again shortly.",
            headers={"retry-after": "1"},
        )


def _no_descriptor_left() -> bool:
    try:
        os.close(os.eventfd(0))
    except OSError as error:
        return error.errno in _EXHAUSTED
    return False
