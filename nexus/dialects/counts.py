"""Numbers of tokens, as backends report them in any dialect."""

from __future__ import annotations

from typing import Any

_MOST = 10**8
"""A larger number of tokens is ignored: one such response would spoil a sum for as long as the
gateway runs."""


def count(value: Any) -> int | None:
    """A number of tokens; None for what is none: negative, not whole, or too large to be
    believed."""
    if value is None or (type(value) is int and 0 <= value <= _MOST):
        return value
    if type(value) not in (int, float) or not 0 <= value <= _MOST or value != int(value):
        return None
    return int(value)


def detail(details: Any, name: str) -> int | None:
    """One of the counts in an object of details; None if it is no object."""
    return count(details.get(name)) if isinstance(details, dict) else None
