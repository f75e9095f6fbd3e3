"""What a dashboard and a panel are, and the expressions that most panels are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Panel:
    """`limits`: value → colour from there on; `names`: value → (text, colour); `runbook`: a
    page, with its anchor."""

    title: str
    description: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 0
    runbook: str = ""
    limits: Sequence[tuple[float | None, str]] = ()
    names: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    stacked: bool = False
    signed: bool = False


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """`variables` beside the data source: those of instance, model and backend that its panels
    heed."""

    uid: str
    title: str
    description: str
    rows: Mapping[str, Sequence[Panel]]
    runbook: str
    variables: Sequence[str] = ("instance", "model", "backend")


HOST = 'instance=~"$instance"'
MODEL = f'{HOST}, model=~"$model"'
BACKEND = f'{HOST}, backend=~"$backend"'
BOTH = f'{MODEL}, backend=~"$backend"'
"""What the variables leave."""

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
"""Of the recorded shares."""
EVERY = "$__rate_interval"
ZERO_IS_GOOD = ((None, "green"), (1e-9, "red"))
YES_IS_GOOD = {"0": ("no", "red"), "1": ("yes", "green")}


def rate(family: str, where: str, *by: str) -> str:
    """Events a second."""
    return f"sum{_by(by)} (rate({family}{{{where}}}[{EVERY}]))"


def rare(family: str, where: str) -> str:
    """Events a second of a family that may have no series yet."""
    return f"{rate(family, where)} or vector(0)"


def quantile(share: float, family: str, where: str, *by: str) -> str:
    """A percentile of a histogram, estimated from its buckets."""
    return f"histogram_quantile({share}, {rate(f'{family}_bucket', where, 'le', *by)})"


def percentiles(family: str, where: str) -> list[tuple[str, str]]:
    return [(quantile(share, family, where), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)]


def mean(family: str, where: str, *by: str) -> str:
    return f"{rate(f'{family}_sum', where, *by)} / {rate(f'{family}_count', where, *by)}"


def _by(labels: Sequence[str]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""
