"""The calendar windows of budgets, across changes of the clock."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from nexus.access.windows import FOREVER, window

BERLIN = ZoneInfo("Europe/Berlin")
KOLKATA = ZoneInfo("Asia/Kolkata")
HOUR = 3600


def at(text: str, zone=UTC) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp())


@pytest.mark.parametrize(
    ("per", "zone", "now", "start", "end"),
    [
        ("month", UTC, "2026-11-27T18:43", "2026-11-01T00:00", "2026-12-01T00:00"),
        ("month", BERLIN, "2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00"),
        # The clock goes back on 25 October, forward on 29 March.
        ("month", BERLIN, "2026-10-31T23:59", "2026-10-01T00:00", "2026-11-01T00:00"),
        ("day", BERLIN, "2026-10-25T12:00", "2026-10-25T00:00", "2026-10-26T00:00"),
        ("day", BERLIN, "2027-03-28T12:00", "2027-03-28T00:00", "2027-03-29T00:00"),
        ("week", BERLIN, "2026-10-25T23:30", "2026-10-19T00:00", "2026-10-26T00:00"),
        ("week", UTC, "2026-11-23T00:00", "2026-11-23T00:00", "2026-11-30T00:00"),
        ("hour", KOLKATA, "2026-11-27T10:59", "2026-11-27T10:00", "2026-11-27T11:00"),
        ("month", UTC, "2024-02-29T23:59", "2024-02-01T00:00", "2024-03-01T00:00"),
    ],
)
def test_windows(per, zone, now, start, end):
    assert window(per, zone, at(now, zone) + 0.9) == (at(start, zone), at(end, zone))


@pytest.mark.parametrize(("day", "hours"), [("2026-10-25", 25), ("2027-03-28", 23)])
def test_a_day_may_have_more_or_fewer_hours(day, hours):
    start, end = window("day", BERLIN, at(f"{day}T12:00", BERLIN))
    assert end - start == hours * HOUR


def test_the_hour_that_comes_twice_is_two_windows():
    first = at("2026-10-25T00:30")  # 02:30 in summer, and an hour later once more
    windows = [window("hour", BERLIN, first + n * HOUR) for n in (0, 1)]
    assert windows[0][1] == windows[1][0]
    assert [end - start for start, end in windows] == [HOUR, HOUR]


@pytest.mark.parametrize("per", ["hour", "day", "week", "month"])
def test_windows_follow_each_other_without_a_gap(per):
    now = at("2026-09-28T22:00")
    while now < at("2027-04-05T00:00"):
        start, end = window(per, BERLIN, now)
        assert start <= now < end
        assert window(per, BERLIN, end - 1) == (start, end)
        assert window(per, BERLIN, end)[0] == end
        now = end if per != "hour" else end + 5 * HOUR


def test_a_total_has_no_end():
    assert window("total", UTC, 1e9) == (0, FOREVER)
