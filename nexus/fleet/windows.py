"""The last hour and day of each backend, as the health process writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from nexus.runtime.documents import Amount, Count, Document
from nexus.runtime.files import write_atomically

_FILE = "windows.json"

Trouble = Literal["hangs", "refuses_all"]


class Window(Document, frozen=True):
    """The attempts at a backend that ended within one span of time. Rates are shares of `attempts`.

    Attributes:
        seconds: Length of the span.
        attempts: Attempts that show something about the backend. A client's own errors and
            disconnects, a busy backend, and failures of the gateway itself do not count.
        error_rate: None without attempts, like the other rates.
    """

    seconds: Count
    attempts: Count
    error_rate: Amount | None
    success_rate: Amount | None
    average_ttft_ms: Amount | None


class RecentOutcomes(Document, frozen=True):
    """A backend's last hour and day.

    Attributes:
        trouble: Why it served nothing in the last ten minutes although it got requests; None if it
            served some, or got too few.
    """

    last_hour: Window
    last_day: Window
    trouble: Trouble | None


def write_windows(run_dir: Path, windows: dict[str, RecentOutcomes]) -> None:
    """Replace the file by these windows, by label value of the backend. Raises OSError."""
    write_atomically(run_dir / _FILE, msgspec.json.encode(windows))


def read_windows(run_dir: Path) -> dict[str, RecentOutcomes]:
    """The windows that were written last; empty without a readable file."""
    try:
        return msgspec.json.decode((run_dir / _FILE).read_bytes(), type=dict[str, RecentOutcomes])
    except (OSError, msgspec.DecodeError):
        return {}
