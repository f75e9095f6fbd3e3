"""Maps the file of a table into memory, so that all processes share it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path


def map_file(path: Path | None, size: int) -> mmap.mmap:
    """Open or create the file, and map it; None is memory that no other process sees.

    Raises OSError.
    """
    if path is None:
        return map_descriptor(None, size)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        return map_descriptor(fd, size)
    finally:
        os.close(fd)


def map_descriptor(fd: int | None, size: int) -> mmap.mmap:
    """Map an open file; None is memory that no other process sees.

    The file gets its space first. Raises OSError, instead of SIGBUS at a later store.
    """
    if fd is None:
        return mmap.mmap(-1, size)
    if os.fstat(fd).st_size < size:
        os.posix_fallocate(fd, 0, size)
    return mmap.mmap(fd, size)
