"""Waiting for something to become true, with a deadline instead of a sleep."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], *, within_s: float = 30.0, every_s: float = 0.02) -> T:
    """Poll until `condition` gives something true, and give that; fail with its last value or
    error otherwise."""
    deadline = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
            last = value
        except (OSError, AssertionError, KeyError) as error:
            last = error
        time.sleep(every_s)
    raise AssertionError(f"not within {within_s} s; last: {last!r}")
