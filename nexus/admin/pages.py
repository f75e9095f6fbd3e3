"""The dashboard's HTML, from templates that escape every name.

The health process renders the same parts every second, for pages that are open.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from nexus import __version__
from nexus.admin.history import Filter
from nexus.admin.responses import PastRequest
from nexus.config.limit_records import OwnLimits
from nexus.fleet.dashboard_state import Backlog, Tick
from nexus.fleet.problems import Problem
from nexus.runtime.text import printable

TILES: tuple[tuple[str, str, str], ...] = (
    ("requests_per_s", "Requests", "/s"),
    ("error_share", "Errors", "%"),
    ("in_flight", "In flight", ""),
    ("queued", "Queued", ""),
    ("duration_p50_ms", "Duration p50", "ms"),
    ("duration_p95_ms", "Duration p95", "ms"),
    ("ttft_p50_ms", "First token p50", "ms"),
    ("ttft_p95_ms", "First token p95", "ms"),
    ("tokens_per_s", "Tokens", "/s"),
)
"""Key, title and unit of each value that has a chart of its last minutes."""

HISTORY_S = 300
"""How long the charts go back; there is one value for each second."""
_LATE_S = 5
"""Age from which the page says that its state is old; a new one is due every second."""
_PARTS = ("summary", "problems", "backends", "matrix", "processes")
_CHART_POINTS, _CHART_HEIGHT = 150, 40
_MAX_OF_A_CODE = 5
"""Problems of one kind that are listed; the others are counted."""


def render_page(
    tick: Tick | None,
    backlog: Backlog | None,
    requests: Sequence[PastRequest],
    wanted: Filter,
    *,
    age_s: float | None = None,
    operations: bool = False,
) -> str:
    """The whole page, complete without scripts. `age_s` is the age of the tick.

    `operations` links to the pages that only the operations port has.
    """
    series = backlog.series if backlog else {}
    charts = {key: _chart(series.get(key, ())) for key, _, _ in TILES}
    return render(
        "dashboard.html",
        time=tick.time if tick else 0,
        parts=tick.parts if tick else {},
        tiles=_part("tiles", tick, charts) if tick else "",
        rows=render_rows(requests),
        wanted=wanted,
        version=__version__,
        age_s=age_s,
        late_s=_LATE_S,
        operations=operations,
    )


def render(template: str, **values: Any) -> str:
    """A page by the name of its template."""
    return _environment().get_template(template).render(values)


def render_parts(state: Any) -> dict[str, str]:
    """The parts of the page that change with the state, by the ids of their elements."""
    return {name: _part(name, state) for name in _PARTS} | {"tiles": _part("tiles", state, {})}


def _part(name: str, *arguments: Any) -> str:
    macro = getattr(_environment().get_template("parts.html").module, name)
    return str(macro(*arguments)).strip()


def _chart(values: Sequence[float | None]) -> str:
    """A line as SVG for pages without scripts, the newest value at the right; None is a gap."""
    shown = values[:: -(HISTORY_S // _CHART_POINTS)][::-1]
    top = max((value for value in shown if value is not None), default=0) or 1
    path, gap = "", True
    for x, value in enumerate(shown, _CHART_POINTS - len(shown)):
        if value is not None:
            path += f"{'M' if gap else 'L'}{x} {_CHART_HEIGHT * (1 - value / top):.1f}"
        gap = value is None
    box = f"0 -2 {_CHART_POINTS - 1} {_CHART_HEIGHT + 4}"
    return f'<svg viewBox="{box}" preserveAspectRatio="none"><path d="{path}"/></svg>'


def render_rows(requests: Sequence[PastRequest]) -> str:
    """One row for each request, in their order."""
    return "".join(_part("row", request) for request in requests)


def _limited(problems: Sequence[Problem]) -> Iterator[tuple[Problem, int]]:
    """The first problems of each kind; the last one shown carries the number of those left out."""
    remaining = Counter(problem.code for problem in problems)
    shown: Counter[str] = Counter()
    for problem in problems:
        shown[problem.code] += 1
        remaining[problem.code] -= 1
        if shown[problem.code] <= _MAX_OF_A_CODE:
            yield problem, remaining[problem.code] if shown[problem.code] == _MAX_OF_A_CODE else 0


def _ms(value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _number(value: float | None) -> str:
    """A number with three or four digits."""
    if value is None:
        return "\N{EN DASH}"
    if value >= 1000 or value == int(value):
        return f"{value:,.0f}".replace(",", "\N{THIN SPACE}")
    return f"{value:.3g}"


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(max(0, seconds))} s"


def _globs(lists: list[list[str]]) -> str:
    return " and ".join(", ".join(names) or "none" for names in lists) or "all"


def _limits(limits: OwnLimits | None) -> list[tuple[str, str]]:
    """The limits that are set, by name."""
    given = msgspec.structs.asdict(limits) if limits is not None else {}
    return [(name, str(value)) for name, value in given.items() if value is not None]


def _clock(unix: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(unix))


def _without_controls(value: object) -> object:
    """A text with its unprintable characters escaped; anything else as it is."""
    return printable(value, keep="\n\u2009\u202f\xa0") if type(value) is str else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("nexus.admin"),
        auto_reload=False,
        autoescape=True,
        finalize=_without_controls,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "ms": _ms,
        "number": _number,
        "ago": _ago,
        "clock": _clock,
        "limited": _limited,
        "globs": _globs,
        "limits": _limits,
    }
    environment.globals |= {"TILES": TILES}
    return environment
