"""The directory of state that outlives a restart. One gateway at a time may write to it."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

from nexus.config import Config
from nexus.fleet.locks import LockFile
from nexus.runtime.files import PRIVATE, who_else_writes, write_atomically

_LOCK_S = 1.0


class StateDirectoryHeld(OSError):
    """Another gateway uses the directory."""


class StateDirectory:
    """The directory, created at the first write, for its owner only. The health process writes.

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

    def read(self, name: str) -> bytes | None:
        """The content of one file; None if there is none. Raises OSError."""
        try:
            self._check()
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def _check(self) -> None:
        """Raise OSError if anybody else could have put files into the directory."""
        about = self.path.stat()  # systemd makes it a link if the service has a dynamic user
        match who_else_writes(about):
            case "owner":
                reason = f"the directory belongs to another user (uid {about.st_uid})"
                raise OSError(errno.EPERM, reason)
            case "others":
                raise OSError(errno.EPERM, "other users may write in the directory")

    def write(self, name: str, content: bytes) -> None:
        """Replace one file. Raises OSError as `claim` does."""
        write_atomically(self.claim() / name, content, mode=PRIVATE)

    def claim(self) -> Path:
        """Make the directory, and lock it until this process ends.

        Raises OSError; `StateDirectoryHeld` if another gateway writes here.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check()
        if self._lock is None:
            self._lock = LockFile(self.path / "lock")
        if not self._lock.acquire_within(0, _LOCK_S):  # at once if it is held already
            raise StateDirectoryHeld(0, "another gateway uses it")
        return self.path

    def close(self) -> None:
        """Release the lock, so that another process can write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
