"""What the dashboard shows, as the health process left it in the run directory a moment ago.

One file, replaced whole each second: its first line is the current state, its second what a page that has just been
opened needs besides, both JSON. Who serves pages passes the lines on as they are: any number of viewers costs no
further reading of figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nexus.runtime.files import write_atomically

_FILE = "live.json"


@dataclass(frozen=True)
class DashboardState:
    """Both lines, without their ends, and the moment of their writing in nanoseconds, by which a new one is known."""

    tick: bytes
    history: bytes
    written_ns: int


def write_live(run_dir: Path, tick: bytes, history: bytes) -> None:
    """Replace the state. Raises OSError."""
    write_atomically(run_dir / _FILE, tick + b"\n" + history)


def read_live(run_dir: Path, *, unlike: DashboardState | None = None) -> DashboardState | None:
    """The state as it stands; `unlike` itself where there is none newer, which costs one system call."""
    path = run_dir / _FILE
    try:
        written_ns = path.stat().st_mtime_ns
        if unlike is not None and written_ns == unlike.written_ns:
            return unlike
        tick, _, history = path.read_bytes().partition(b"\n")
    except OSError:
        return unlike
    return DashboardState(tick, history, written_ns)
