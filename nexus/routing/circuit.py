"""When a backend is taken out for what requests saw of it, for how long, and how it comes back. Pure functions."""

from __future__ import annotations

from nexus.config.records import CircuitBreaker

_JITTER = 0.1


def should_open(
    successes: int, failures: int, settings: CircuitBreaker, *, share: float, in_a_row: int
) -> bool:
    """Whether attempts speak for opening: enough failed in a row, or in the last window and of all in it."""
    if in_a_row >= settings.failures:
        return True
    return failures >= settings.failures and failures >= share * (successes + failures)


def open_for_s(consecutive_opens: int, settings: CircuitBreaker, *, chance: float) -> float:
    """How long a circuit stays open that opened for the `trips`-th time in a row; doubled each time, spread a little.

    The spread keeps backends that failed together from being tried together.
    """
    seconds: float = min(
        settings.open_seconds * 2 ** min(consecutive_opens - 1, 16), settings.max_open_seconds
    )
    return seconds * (1 + _JITTER * (2 * chance - 1))
