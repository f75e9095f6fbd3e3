"""Ends this process when its supervisor dies."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Let the kernel end this process when `nexus serve`, its parent, dies (`prctl(2)`)."""
    if os.environ.get("NEXUS_SUPERVISED"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
