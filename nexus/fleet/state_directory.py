"""The directory of what must outlive a restart. One gateway at a time may write into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nexus.config import Config
from nexus.fleet.locks import LockFile
from nexus.runtime.files import PRIVATE, write_atomically

_LOCK_S = 1.0


class StateDirectoryHeld(OSError):
    """Another gateway writes into the directory."""


class StateDirectory:
    """Made at the first write, for its owner alone. Only the health process writes.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: LockFile | None = None

    @classmethod
    def of(cls, config: Config, environ: Mapping[str, str]) -> StateDirectory:
        """`[server] state_dir`, else `$STATE_DIRECTORY` (systemd), else one of the user's."""
        if given := config.server.state_dir or environ.get("STATE_DIRECTORY", "").split(":")[0]:
            return cls(Path(given))
        home = environ.get("HOME") or "/nonexistent"
        base = environ.get("XDG_STATE_HOME") or f"{home}/.local/state"
        return cls(Path(base) / "nexus" / str(config.server.port))

    def write(self, name: str, content: bytes) -> None:
        """Replace one file. Raises OSError; `StateDirectoryHeld` if another gateway writes here.

        The lock is kept until this process ends.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self._lock or LockFile(self.path / "lock")
        if self._lock is None and not lock.acquire_within(0, _LOCK_S):
            lock.close()
            raise StateDirectoryHeld(0, "another gateway uses it")
        self._lock = lock
        write_atomically(self.path / name, content, mode=PRIVATE)

    def close(self) -> None:
        """Let another process write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
