"""What the page of usage shows of a span of time."""

from nexus.admin.usage_view import SPANS, Sums, ranked, span_of, usage_view

NOW = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC
DAY, WEEK, MONTH, YEAR = SPANS
HOUR_S = 3600


def view(by_hour, *, span=DAY):
    """The view of {(hour of the span, name): (requests, cost)}."""
    since, _ = span_of(NOW, span)
    hours = [
        (since + hour * HOUR_S, name, n, 0, 0, 0, cost)
        for (hour, name), (n, cost) in by_hour.items()
    ]
    sums: dict[str, list[int]] = {}
    for _, name, *amounts in hours:
        sums[name] = [a + b for a, b in zip(sums.get(name, [0] * 5), amounts, strict=True)]
    found = ranked((name, *amounts) for name, amounts in sums.items())
    top = [one.name for one in found[:5]]
    return usage_view(
        found,
        by="key",
        span=span,
        since=since,
        of_hours=[(hour, *amounts) for hour, _, *amounts in hours],
        of_series=[row for row in hours if row[1] in top],
    )


def test_a_span_ends_with_the_present_hour_or_day():
    assert span_of(NOW, DAY) == (1_789_916_400, 1_790_002_800)
    assert span_of(NOW, WEEK) == (1_789_430_400, 1_790_035_200)
    for span in SPANS:
        since, end = span_of(NOW, span)
        assert since < NOW < end
        assert (end - since) % span.step_s == 0


def test_the_dearest_come_first_and_bars_are_stacked():
    shown = view({(0, "a"): (3, 1), (0, "b"): (1, 3), (23, "a"): (1, 1)})
    assert (shown.unit, shown.series, shown.hidden) == ("USD", ["b", "a"], 0)
    assert shown.total == Sums("total", 5, 0, 0, 0, 5)
    first, last = shown.periods[0], shown.periods[23]
    assert first.amounts == ["0.000000003", "0.000000001"]
    assert [(bar.x, bar.y, bar.height) for bar in first.bars] == [(0, 25, 75), (0, 0, 25)]
    assert [(bar.series, bar.x, bar.y, bar.height) for bar in last.bars] == [(1, 230, 75, 25)]
    assert first.bars[0].title == "2026-09-20 15:00 b: 0.000000003"
    assert not any(period.bars for period in shown.periods[1:23])


def test_the_rest_is_added_up():
    many = {(5, f"k{n:02}"): (1, 100 - n) for n in range(60)}
    shown = view(many, span=WEEK)
    assert shown.series == ["k00", "k01", "k02", "k03", "k04", "others"]
    assert shown.hidden == 10
    assert [row.name for row in shown.rows][-2:] == ["k49", "others"]
    assert shown.rows[-1].cost == sum(100 - n for n in range(50, 60))
    assert sum(row.cost for row in shown.rows) == shown.total.cost == 4230
    assert shown.periods[0].amounts[-1] == "0.00000374"  # 4230 - (100 + 99 + 98 + 97 + 96)


def test_without_costs_it_shows_requests():
    shown = view({(24, "a"): (7, 0)}, span=MONTH)
    assert (shown.unit, shown.periods[1].amounts) == ("requests", ["7"])


def test_an_empty_span():
    shown = view({}, span=YEAR)
    assert (shown.rows, shown.total.requests, len(shown.periods)) == ([], 0, 52)
