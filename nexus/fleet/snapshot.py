"""The fleet snapshot: a file that is replaced as a whole, and its revision number in shared memory.

The file is outside of the generations, so that a restarted gateway has the last fleet. Its first
line is the snapshot without models. Each further line is a page of one backend's models. There are
many models, which rarely change: only new pages are encoded and decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import msgspec
from msgspec.structs import replace

from nexus.fleet.mapping import map_file
from nexus.fleet.records import Backend, Model, Snapshot
from nexus.runtime.files import write_atomically

_PAGE = 500
"""Models in one page, which is encoded or decoded in about half a millisecond."""


class _Head(msgspec.Struct, frozen=True):
    """The first line. `pages` is the number of further lines for each backend, in their order."""

    snapshot: Snapshot
    pages: tuple[int, ...]


def _shared_revision(run_dir: Path) -> memoryview:
    """One number that all processes map; one process writes it."""
    return memoryview(map_file(run_dir / "fleet.revision", 8)).cast("q")


class SnapshotReader:
    """Reads the snapshot. Reading `revision` costs no system call, so every request may do it.

    Attributes:
        decoded: How many pages of models were decoded so far.
    """

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / "fleet.json"
        self._number = _shared_revision(run_dir)
        self._pages: dict[bytes, tuple[Model, ...]] = {}
        self._models: dict[str, tuple[list[bytes], tuple[Model, ...]]] = {}
        self.decoded = 0

    @property
    def revision(self) -> int:
        """The revision of the newest snapshot; 0 before the first."""
        return self._number[0]

    def read(self, pause: Callable[[], object] = lambda: None) -> Snapshot | None:
        """The current snapshot; None before the first, or if the file cannot be decoded.

        Lists of models that did not change are the same objects as before. `pause` is called after
        each decoded page, so that other greenlets can run.
        """
        try:
            first, *lines = self._file.read_bytes().split(b"\n")
            head = msgspec.json.decode(first, type=_Head)
            backends, known = head.snapshot.backends, iter(lines)
            if len(head.pages) != len(backends) or sum(head.pages) != len(lines):
                return None
            pages = {
                backend.name: [next(known) for _ in range(n)]
                for backend, n in zip(backends, head.pages, strict=True)
            }
            models = {name: self._models_of(name, lines, pause) for name, lines in pages.items()}
        except (OSError, msgspec.DecodeError):
            return None
        self._models = {name: (pages[name], models[name]) for name in pages}
        if len(self._pages) > len(lines):
            there = set(lines)
            self._pages = {line: page for line, page in self._pages.items() if line in there}
        return replace(
            head.snapshot, backends=tuple(replace(one, models=models[one.name]) for one in backends)
        )

    def _models_of(
        self, name: str, lines: list[bytes], pause: Callable[[], object]
    ) -> tuple[Model, ...]:
        before = self._models.get(name)
        if before is not None and before[0] == lines:
            return before[1]
        models: list[Model] = []
        for line in lines:
            page = self._pages.get(line)
            if page is None:
                page = self._pages[line] = msgspec.json.decode(line, type=tuple[Model, ...])
                self.decoded += 1
                pause()
            models += page
        return tuple(models)


class SnapshotWriter:
    """Publishes snapshots; there is one in a gateway, in the health process.

    Attributes:
        encoded: How many pages of models were encoded so far.
    """

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / "fleet.json"
        self._number = _shared_revision(run_dir)
        self._pages: dict[str, tuple[tuple[Model, ...], list[bytes]]] = {}
        self.encoded = 0

    def next_revision(self) -> int:
        return self._number[0] + 1

    def publish(self, snapshot: Snapshot) -> None:
        self._pages = {
            backend.name: (backend.models, self._pages_of(backend)) for backend in snapshot.backends
        }
        pages = [lines for _, lines in self._pages.values()]
        without = replace(
            snapshot, backends=tuple(replace(backend, models=()) for backend in snapshot.backends)
        )
        head = msgspec.json.encode(_Head(without, tuple(map(len, pages))))
        write_atomically(self._file, b"\n".join([head, *chain.from_iterable(pages)]))
        self._number[0] = snapshot.revision

    def _pages_of(self, backend: Backend) -> list[bytes]:
        before = self._pages.get(backend.name)
        if before is not None and before[0] is backend.models:
            return before[1]
        models = backend.models
        lines = [
            msgspec.json.encode(models[at : at + _PAGE]) for at in range(0, len(models), _PAGE)
        ]
        self.encoded += len(lines)
        return lines
