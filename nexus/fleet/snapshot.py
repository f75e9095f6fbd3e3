"""The fleet snapshot as a file that is replaced whole, and the shared number that tells of a new one.

The file lies outside the generations: a restart of the gateway finds the fleet that was last seen.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import msgspec

from nexus.fleet.records import Snapshot


class _SharedNumber:
    """Eight bytes that all processes map; one process writes them."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < 8:
                os.posix_fallocate(fd, 0, 8)
            self._cell = memoryview(mmap.mmap(fd, 8)).cast("q")
        finally:
            os.close(fd)

    @property
    def value(self) -> int:
        return self._cell[0]

    @value.setter
    def value(self, number: int) -> None:
        self._cell[0] = number


class SnapshotReader:
    """Reads the snapshot; asking for its `number` costs no system call and may be done at every request."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / "fleet.json"
        self._number = _SharedNumber(run_dir / "fleet.number")

    @property
    def number(self) -> int:
        """That of the newest snapshot; 0 before the first."""
        return self._number.value

    def read(self) -> Snapshot | None:
        """The snapshot as it stands now; None before the first, or where the file cannot be understood."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Snapshot)
        except (OSError, msgspec.DecodeError):
            return None


class SnapshotWriter:
    """Publishes snapshots; there is one in a gateway, in the health process."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / "fleet.json"
        self._number = _SharedNumber(run_dir / "fleet.number")

    def next_number(self) -> int:
        return self._number.value + 1

    def publish(self, snapshot: Snapshot) -> None:
        aside = self._file.with_name(f".fleet-{os.getpid()}")
        aside.write_bytes(msgspec.json.encode(snapshot))
        aside.replace(self._file)
        self._number.value = snapshot.number
