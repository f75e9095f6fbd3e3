"""The dashboard's state, which the health process replaces every second in the run directory.

The file has two lines of JSON: the current state (`Tick`), and the backlog for a page that was just
opened (`Backlog`). Processes that serve pages forward the lines unchanged, so that viewers cause no
further reads of the metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from nexus.runtime.documents import Document
from nexus.runtime.files import write_atomically

_FILE = "live.json"

Values = dict[str, float | None]
"""Key of a tile → its value."""


class Tick(Document, frozen=True):
    """What changes every second.

    Attributes:
        number: Counts the ticks of one health process.
        time: Unix seconds.
        now: The current value of each tile.
        peaks: The highest value that each tile keeps.
        parts: HTML by the ids of the elements that it replaces.
        rows: HTML of the requests that ended since the last tick.
    """

    number: int
    time: float
    now: Values
    peaks: Values
    parts: dict[str, str]
    rows: str


class Backlog(Document, frozen=True):
    """The last minutes.

    Attributes:
        series: The values of each tile, and `time`, oldest first.
        rows: HTML of the requests that ended last.
    """

    series: dict[str, list[float | None]]
    rows: str


@dataclass(frozen=True)
class DashboardState:
    """Both lines as JSON, and when they were written; a new state has another `written_ns`."""

    tick: bytes
    history: bytes
    written_ns: int

    def decoded(self) -> tuple[Tick, Backlog]:
        """Raises `msgspec.DecodeError` for a damaged file."""
        tick = msgspec.json.decode(self.tick, type=Tick)
        return tick, msgspec.json.decode(self.history, type=Backlog)


def write_state(run_dir: Path, tick: Tick, backlog: Backlog) -> None:
    """Replace the state. Raises OSError."""
    lines = msgspec.json.encode(tick), msgspec.json.encode(backlog)
    write_atomically(run_dir / _FILE, b"\n".join(lines))


def read_state(run_dir: Path, *, known: DashboardState | None = None) -> DashboardState | None:
    """The current state; `known` itself if it is still current, which costs one system call."""
    path = run_dir / _FILE
    try:
        written_ns = path.stat().st_mtime_ns
        if known is not None and written_ns == known.written_ns:
            return known
        tick, _, history = path.read_bytes().partition(b"\n")
    except OSError:
        return known
    return DashboardState(tick, history, written_ns)
