"""How the last reload of the configuration went, left in the run directory by the health process for who asked."""

from __future__ import annotations

from pathlib import Path

import msgspec

from nexus.runtime.files import write_atomically

_FILE = "reload.json"


class Reload(msgspec.Struct, frozen=True, kw_only=True):
    """`count` goes up with each; `problems`: why it was refused; `restart`: changed keys that wait for a restart."""

    count: int = 0
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    backends: int = 0


def last_reload(run_dir: Path) -> Reload:
    """The last one; with a count of 0 where there was none."""
    try:
        return msgspec.json.decode((run_dir / _FILE).read_bytes(), type=Reload)
    except (OSError, msgspec.DecodeError):
        return Reload()


def write_reload(run_dir: Path, reload: Reload) -> None:
    """Replace what is there. Raises OSError."""
    write_atomically(run_dir / _FILE, msgspec.json.encode(reload))
