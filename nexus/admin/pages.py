"""The dashboard's HTML, from templates that escape every name. The health process makes the same parts each second."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from nexus import __version__
from nexus.admin.history import Filter

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
"""Key of the state, title and unit of each figure that is shown with its last minutes."""


_LATE_S = 5
"""A state that is older is told to be; a new one is made every second."""
_PARTS = ("summary", "problems", "backends", "matrix", "processes")
KEPT_S = 300
"""How long the figures are kept, one of each a second."""
_POINTS, _HEIGHT = 150, 40
"""Of a chart in the page, whatever its size there."""


def page(
    tick: dict[str, Any],
    history: dict[str, Any],
    requests: Sequence[dict[str, Any]],
    wanted: Filter,
    *,
    age_s: float | None = None,
) -> str:
    """The whole page, as it reads without scripts. `age_s`: how old the state is, None where there is none."""
    charts = {key: _chart(history.get("series", {}).get(key, ())) for key, _, _ in TILES}
    state = {"now": tick["now"], "peaks": tick.get("peaks", {})} if tick else None
    return (
        _environment()
        .get_template("dashboard.html")
        .render(
            tick=tick, parts=tick.get("parts", {}), figures=_part("figures", state, charts) if state else "",
            rows=rows(requests), wanted=wanted, version=__version__, age_s=age_s, late_s=_LATE_S,
        )
    )  # fmt: skip


def parts(state: dict[str, Any]) -> dict[str, str]:
    """The parts of the page that change with the state, by the ids of their places."""
    return {name: _part(name, state) for name in _PARTS} | {"figures": _part("figures", state, {})}


def _part(name: str, *given: Any) -> str:
    return str(getattr(_environment().get_template("parts.html").module, name)(*given)).strip()


def _chart(values: Sequence[float | None]) -> str:
    """A line as SVG for who runs no scripts, the newest at the right; None is a gap."""
    shown = values[:: -(KEPT_S // _POINTS)][::-1]
    top = max((value for value in shown if value is not None), default=0) or 1
    path, apart = "", True
    for x, value in enumerate(shown, _POINTS - len(shown)):
        if value is not None:
            path += f"{'M' if apart else 'L'}{x} {_HEIGHT * (1 - value / top):.1f}"
        apart = value is None
    return f'<svg viewBox="0 -2 {_POINTS - 1} {_HEIGHT + 4}" preserveAspectRatio="none"><path d="{path}"/></svg>'


def rows(requests: Sequence[dict[str, Any]]) -> str:
    """One row for each request, newest first."""
    row = _environment().get_template("parts.html").module.row  # type: ignore[attr-defined]
    return "".join(str(row(request)).strip() for request in requests)


def _ms(value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def figure(value: float | None) -> str:
    """A number in three or four places."""
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


def _clock(unix: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(unix))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("nexus.admin"), auto_reload=False, autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"ms": _ms, "figure": figure, "ago": _ago, "clock": _clock}
    environment.globals |= {"TILES": TILES, "MOST_NAMED": 5}
    return environment
