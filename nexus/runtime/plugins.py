"""Plugins of libraries, which are looked up in the metadata of all installed distributions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any


@contextmanager
def metadata_read_once() -> Iterator[None]:
    """Look up plugins in metadata that is read once within the block.

    `gevent.monkey.patch_all` looks for plugins in each of its 25 steps. Each time, it would read
    the metadata of every distribution: 250 ms of processor time at the start of each worker in an
    environment of 90 distributions.
    """
    entry_points, found = metadata.entry_points, metadata.entry_points()

    def select(**parameters: Any) -> Any:
        return found.select(**parameters)

    metadata.entry_points = select
    try:
        yield
    finally:
        metadata.entry_points = entry_points
