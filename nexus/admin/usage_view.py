"""What the page of usage shows of a span of time: sums by name, and a chart. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from nexus.access.prices import usd

DAY_S = 86_400
MOST_ROWS = 50
MOST_SERIES = 5
BAR, HEIGHT = 10, 100
"""The size of a bar of the chart, in its own units."""


class Span(msgspec.Struct, frozen=True):
    """A span of time that can be chosen, and the step in which the page shows it."""

    days: int
    title: str
    step_s: int
    step: str


SPANS = (
    Span(1, "a day", 3600, "hour"),
    Span(7, "a week", DAY_S, "day"),
    Span(31, "31 days", DAY_S, "day"),
    Span(364, "52 weeks", 7 * DAY_S, "week"),
)


class Sums(msgspec.Struct, frozen=True):
    """The usage under one name; `cost` is in nano-dollars."""

    name: str
    requests: int
    input: int
    cached: int
    output: int
    cost: int

    @property
    def cost_usd(self) -> str:
        return usd(self.cost)


class Bar(msgspec.Struct, frozen=True):
    """A part of a bar: one name in one period. `series` is the number of its colour."""

    series: int
    title: str
    x: float
    y: float
    height: float


class Period(msgspec.Struct, frozen=True):
    """A period, and its amounts by series, in dollars or requests."""

    start: str
    amounts: list[str]
    bars: list[Bar]


class UsageView(msgspec.Struct, frozen=True, kw_only=True):
    """The usage of a span.

    Attributes:
        unit: What the chart shows: `USD`, or `requests` if nothing has cost anything.
        series: Names in the chart: those with the most, then `others` if there are more.
        rows: The names with the most; the rest is added up as `others`.
        hidden: How many names that is.
    """

    by: str
    span: Span
    since: str
    until: str
    unit: str
    series: list[str]
    rows: list[Sums]
    hidden: int
    total: Sums
    periods: list[Period]


def span_of(now: float, span: Span) -> tuple[int, int]:
    """The start and the end of a span that ends with the present hour, day, or week."""
    end = (int(now) // min(span.step_s, DAY_S) + 1) * min(span.step_s, DAY_S)
    return end - span.days * DAY_S, end


def ranked(rows: Iterable[Sequence[Any]]) -> list[Sums]:
    """The sums by name, the dearest first."""
    sums = [Sums(str(row[0]), *row[1:]) for row in rows]
    return sorted(sums, key=lambda one: (-one.cost, -one.requests, one.name))


def usage_view(
    found: Sequence[Sums],
    *,
    by: str,
    span: Span,
    since: int,
    of_hours: Iterable[Sequence[Any]],
    of_series: Iterable[Sequence[Any]],
) -> UsageView:
    """Make the view. `of_hours` are sums by hour, `of_series` by hour and name of the dearest."""
    total = _added("total", found)
    field = -1 if total.cost else 0  # of a row's sums: the cost, or the requests
    names = [one.name for one in found[:MOST_SERIES]]
    series = [*names, "others"] if len(found) > len(names) else names
    count = span.days * DAY_S // span.step_s
    amounts = [[0] * len(series) for _ in range(count)]
    for hour, name, *sums in of_series:
        amounts[(hour - since) // span.step_s][names.index(name)] += sums[field]
    if len(series) > len(names):
        for hour, *sums in of_hours:
            amounts[(hour - since) // span.step_s][-1] += sums[field]
        for one in amounts:
            one[-1] = max(0, one[-1] - sum(one[:-1]))
    top = max(map(sum, amounts), default=0) or 1
    return UsageView(
        by=by,
        span=span,
        since=_moment(since, span),
        until=_moment(since + span.days * DAY_S, span),
        unit="USD" if total.cost else "requests",
        series=series,
        rows=[
            *found[:MOST_ROWS],
            *([_added("others", rest)] if (rest := found[MOST_ROWS:]) else []),
        ],
        hidden=max(0, len(found) - MOST_ROWS),
        total=total,
        periods=[
            _period(
                number,
                one,
                series,
                top=top,
                start=_moment(since + number * span.step_s, span),
                money=bool(total.cost),
            )
            for number, one in enumerate(amounts)
        ],
    )


def _period(
    number: int, amounts: Sequence[int], series: Sequence[str], *, top: int, start: str, money: bool
) -> Period:
    shown = [usd(amount) if money else str(amount) for amount in amounts]
    bars, below = [], 0
    for position, amount in enumerate(amounts):
        if amount:
            below += amount
            title = f"{start} {series[position]}: {shown[position]}"
            x, y, height = (number * BAR, HEIGHT * (1 - below / top), HEIGHT * amount / top)
            bars.append(Bar(position, title, x, round(y, 2), round(height, 2)))
    return Period(start, shown, bars)


def _added(name: str, sums: Iterable[Sums]) -> Sums:
    rows = [(one.requests, one.input, one.cached, one.output, one.cost) for one in sums]
    return (
        Sums(name, *(sum(column) for column in zip(*rows, strict=True)))
        if rows
        else Sums(name, 0, 0, 0, 0, 0)
    )


def _moment(at: int, span: Span) -> str:
    form = "%Y-%m-%d %H:%M" if span.step == "hour" else "%Y-%m-%d"
    return datetime.fromtimestamp(at, UTC).strftime(form)
