"""Names that workers want label values for: one small file each in the run directory, which the health process takes.

A name is asked for once by each worker until the snapshot answers, however many requests there are for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path


class LabelRequests:
    """The directory of the files. Any process may ask; the health process alone takes."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / "labels-wanted"

    def ask(self, name: str) -> None:
        """Leave word that `name` was used. If that cannot be written, its requests go on as `other`."""
        path = self._directory / hashlib.sha256(name.encode()).hexdigest()
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, name.encode())
            finally:
                os.close(descriptor)

    def take(self) -> list[str]:
        """The names asked for since the last call, in the order of their files' names."""
        names = []
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._directory.iterdir()):
                if name := path.read_text(
                    encoding="utf-8", errors="replace"
                ):  # empty: being written just now
                    names.append(name)
                    path.unlink()
        return names
