"""Replaces files atomically, and says who else may write in a directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

PRIVATE = 0o600


def exists(path: Path) -> bool:
    """Whether this process sees a file there. `Path.exists` raises errors before Python 3.14."""
    return os.path.exists(path)  # noqa: PTH110


def is_directory(path: Path) -> bool:
    """Whether this process sees a directory there. `Path.is_dir` raises errors, too."""
    return os.path.isdir(path)  # noqa: PTH112


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace a file, so that readers see the old content or the new one, never a part.

    `mode` is the mode of the new file, minus the umask; only the owner can read `PRIVATE` files.
    Raises OSError; the old file is then unchanged.
    """
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    # A killed process may have left one with another mode.
    aside.unlink(missing_ok=True)
    try:
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def who_else_writes(about: os.stat_result) -> Literal["owner", "others"] | None:
    """Who besides this user could put files into a directory: an owner that is not this user, or
    others by its mode; None if nobody could."""
    if about.st_uid != os.geteuid():
        return "owner"
    return "others" if stat.S_IMODE(about.st_mode) & 0o022 else None
