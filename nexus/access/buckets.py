"""The arithmetic of rate limits: a bucket that drains by what is charged and refills with time.

A bucket's level is one number, its theoretical arrival time: when it will be full again. All
numbers are integers, times in nanoseconds. A unit (a request, a token) takes `unit_ns` to refill.
"""

from __future__ import annotations


def unit_ns(amount: int, period_ns: int) -> int:
    """How long one unit takes to refill; rounded up, so that no more than the rate is admitted."""
    return -(-period_ns // amount)


def admit(full_at: int, units: int, now_ns: int, unit: int, burst: int) -> tuple[int, int, int]:
    """(when the bucket is full again, how long to wait, the units that are left).

    The units are charged if the wait is 0 or less. It is if the bucket holds them, or is full: a
    request that is larger than the bucket is served alone, and delays the next one.
    """
    wait_ns = full_at - now_ns
    if units < burst:
        wait_ns -= (burst - units) * unit
    if wait_ns <= 0:
        # As `charge`, without another call for each limit of each request.
        full_at = (full_at if full_at > now_ns else now_ns) + units * unit
    missing_ns = full_at - now_ns
    return full_at, wait_ns, burst if missing_ns <= 0 else max(0, burst + -missing_ns // unit)


def charge(full_at: int, units: int, now_ns: int, *, unit: int) -> int:
    """The new time at which the bucket is full again."""
    return max(full_at, now_ns) + units * unit


def settle(
    full_at: int,
    now_ns: int,
    *,
    unit: int,
    reserved: int,
    used: int,
    full_since_reserve: bool,
) -> int:
    """The new time at which the bucket is full again, once what was used is known.

    Nothing is returned to a bucket that has been full since the reserve was taken: its refill has
    returned it.
    """
    if used > reserved:
        return charge(full_at, used - reserved, now_ns, unit=unit)
    return full_at if full_since_reserve else full_at - (reserved - used) * unit


def used(full_at: int, now_ns: int, *, unit: int) -> int:
    """How many units are missing from a full bucket."""
    return max(0, -(-(full_at - now_ns) // unit))


def convert(full_at: int, now_ns: int, *, before: int, after: int) -> int:
    """The level for another `unit_ns`: the used part stays."""
    missing = used(full_at, now_ns, unit=before)
    return now_ns + missing * after if missing else full_at
