"""The result of the last reload of the configuration, which the health process writes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from nexus.runtime.files import write_atomically

_FILE = "reload.json"


class ReloadReport(msgspec.Struct, frozen=True, kw_only=True):
    """One reload.

    Attributes:
        count: Number of reloads so far; 0 if there was none.
        problems: Why it was refused; empty if it was not.
        restart: Changed keys that take effect only after a restart.
        backends: Number of backends after it.
        file: The file that was read; empty if there is none.
    """

    count: int = 0
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    backends: int = 0
    file: str = ""


def last_reload(run_dir: Path) -> ReloadReport:
    try:
        return msgspec.json.decode((run_dir / _FILE).read_bytes(), type=ReloadReport)
    except (OSError, msgspec.DecodeError):
        return ReloadReport()


def write_reload_report(run_dir: Path, report: ReloadReport) -> None:
    """Replace the last report. Raises OSError."""
    write_atomically(run_dir / _FILE, msgspec.json.encode(report))
