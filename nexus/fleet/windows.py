"""How requests to each backend went lately, left in the run directory by the health process for `/v1/stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from nexus.runtime.files import write_atomically

_FILE = "windows.json"

Trouble = Literal["hangs", "refuses_all"]


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The attempts at a backend within a span of `seconds` until now; None where there is nothing to go by.

    `attempts` are those that say something of the backend: a client's own errors, its leaving, a busy backend, and what
    the gateway itself lacked are not among them. The rates are shares of them.
    """

    seconds: int
    attempts: int
    error_rate: float | None
    success_rate: float | None
    average_ttft_ms: float | None


class RecentOutcomes(msgspec.Struct, frozen=True, kw_only=True):
    """A backend's last hour and day. `trouble`: it served nothing in the last ten minutes, though it was asked."""

    last_hour: Window
    last_day: Window
    trouble: Trouble | None = None


def write_windows(run_dir: Path, windows: dict[str, RecentOutcomes]) -> None:
    """Replace what is there, by label value. Raises OSError."""
    write_atomically(run_dir / _FILE, msgspec.json.encode(windows))


def read_windows(run_dir: Path) -> dict[str, RecentOutcomes]:
    """What was written last; empty if there is nothing that can be read."""
    try:
        return msgspec.json.decode((run_dir / _FILE).read_bytes(), type=dict[str, RecentOutcomes])
    except (OSError, msgspec.DecodeError):
        return {}
