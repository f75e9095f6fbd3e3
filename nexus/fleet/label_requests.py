"""Names for which workers request label values: one small file each in the run directory.

A worker requests a name once until the snapshot has its label, however many requests use the name.
The health process collects the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path


class LabelRequests:
    """The directory of the files. Any process may request; the health process alone collects."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / "labels-wanted"

    def request(self, name: str) -> None:
        """Request a label for `name`. If that fails, its requests are recorded as `other`."""
        path = self._directory / hashlib.sha256(name.encode()).hexdigest()
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, name.encode())
            finally:
                os.close(descriptor)

    def collect(self) -> list[str]:
        """The names requested since the last call, in the order of their files' names."""
        names = []
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._directory.iterdir()):
                # An empty file is just being written.
                if name := path.read_text(encoding="utf-8", errors="replace"):
                    names.append(name)
                    path.unlink()
        return names
