"""Running out of descriptors or memory for sockets: the gateway's own trouble, never a backend's."""

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
_TELL_EVERY_S = 1.0


class ExhaustionMonitor:
    """Recognizes it, and says so in the log once a second."""

    def __init__(self) -> None:
        self._told_at = -_TELL_EVERY_S

    def detects(self, error: Exception) -> bool:
        """Whether this is what an error means; then the log says so."""
        if isinstance(error, socket.gaierror):
            exhausted = (
                _nothing_can_be_opened()
            )  # a resolver without descriptors only says that it failed
        else:
            exhausted = getattr(error, "errno", None) in _EXHAUSTED and not isinstance(
                error, ssl.SSLError
            )
        if exhausted and time.monotonic() - self._told_at >= _TELL_EVERY_S:
            self._told_at = time.monotonic()
            log.error(
                "descriptors or memory for connections ran out",
                extra={"pid": os.getpid(), "why": error},
            )
        return exhausted

    @staticmethod
    def failure() -> RequestFailed:
        message = (
            "The gateway has no descriptors left for a connection to a backend; try again shortly."
        )
        return RequestFailed("at_capacity", message, headers={"retry-after": "1"})


def _nothing_can_be_opened() -> bool:
    try:
        os.close(os.eventfd(0))
    except OSError as error:
        return error.errno in _EXHAUSTED
    return False
