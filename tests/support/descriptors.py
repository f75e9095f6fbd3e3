"""Descriptors of this process."""

from pathlib import Path


def open_descriptors() -> int:
    """How many are open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
