"""The calendar windows of budgets: hours, days, weeks and months of a time zone. No clock."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo

from nexus.config.budget_records import Period

FOREVER = 1 << 40
"""The end of a window without an end, in Unix seconds."""


def window(per: Period, zone: tzinfo, now: float) -> tuple[int, int]:
    """The start and the end of the window in which `now` lies, in Unix seconds.

    A day lasts from midnight to midnight, so that one may have 23 or 25 hours.
    """
    if per == "total":
        return 0, FOREVER
    local = datetime.fromtimestamp(now, zone)
    if per == "hour":
        offset = int((local.utcoffset() or timedelta()).total_seconds())
        start = (int(now) + offset) // 3600 * 3600 - offset
        return start, start + 3600
    day = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if per == "day":
        return _stamp(day), _stamp(day + timedelta(days=1))
    if per == "week":
        monday = day - timedelta(days=day.weekday())
        return _stamp(monday), _stamp(monday + timedelta(days=7))
    first = day.replace(day=1)
    return _stamp(first), _stamp((first + timedelta(days=32)).replace(day=1))


def _stamp(local: datetime) -> int:
    return int(local.timestamp())
