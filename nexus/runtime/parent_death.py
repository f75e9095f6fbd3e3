"""Ending with the process that supervises this one."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Under `nexus serve`, have the kernel end this process when that one dies, however it does
    (`prctl(2)`)."""
    if os.environ.get("NEXUS_SUPERVISED"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
