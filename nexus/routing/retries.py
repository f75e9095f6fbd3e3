"""How often, and how soon, a request is tried again. Pure functions."""

from __future__ import annotations

_FLOOR_PER_S = 10.0
_SHARE = 0.5
_FIRST_BACKOFF_S = 0.1
LONGEST_PAUSE_S = 2.0
"""A request does not wait longer than this for the same backend; its client is told instead."""


def may_retry(requests: int, retries: int, *, window_s: float) -> bool:
    """Whether the host may make one more attempt, given what it did in the last window.

    Ten a second are always allowed, and beyond that one for every two requests: so one failing
    backend of two costs the clients nothing, and a fleet that is down gets at most half as much
    again as it was asked.
    """
    return retries + 1 <= _FLOOR_PER_S * window_s + _SHARE * requests


def backoff_s(nth: int, *, chance: float) -> float:
    """The pause before the same backend is asked for the `nth` time again: doubling, and
    anywhere in its upper half."""
    return _FIRST_BACKOFF_S * float(2 ** (nth - 1)) * (0.5 + chance / 2)
