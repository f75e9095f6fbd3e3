"""A wall clock that tests set, for the Python processes of a gateway."""

import struct
import time
from datetime import datetime
from pathlib import Path

_AHEAD = struct.Struct("d")
_AT_START = """
import mmap, os, struct, time
with open(os.environ["TEST_CLOCK"], "rb") as file:
    ahead = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
real, read = time.time, struct.Struct("d").unpack_from
time.time = lambda: real() + read(ahead)[0]
"""
"""Python runs it as `sitecustomize` before anything else. libfaketime 0.9.10 breaks time.sleep."""


class Clock:
    """The clock of processes that start with `environ`. It goes on by itself.

    The monotonic clock stays as it is, as with a clock that an administrator sets.
    """

    def __init__(self, directory: Path, now: datetime) -> None:
        self._file = directory / "clock"
        self._path = directory / "at_start"
        self._path.mkdir()
        (self._path / "sitecustomize.py").write_text(_AT_START)
        self._file.touch()
        self.set(now)

    def set(self, now: datetime) -> None:
        """Let the processes have this time from now on."""
        self._ahead_s = now.timestamp() - time.time()
        with self._file.open("r+b", buffering=0) as file:
            file.write(_AHEAD.pack(self._ahead_s))

    def now(self) -> float:
        """What it shows, in Unix seconds."""
        return time.time() + self._ahead_s

    @property
    def environ(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self._path), "TEST_CLOCK": str(self._file)}
