"""What was used, by key, team, model, backend, and endpoint: the source of the usage reports.

Each process counts in a file of its own, in the form of metrics files but in a directory of its
own, since these have real names and would be too many series for a scrape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from prometheus_client.mmap_dict import mmap_key

from nexus.fleet.load_table import Row
from nexus.fleet.outcome import Charge, Outcome
from nexus.metrics.directory_reader import DirectoryReader
from nexus.metrics.labels import NONE, OTHER
from nexus.metrics.metrics_file import ReservedFile
from nexus.metrics.store import SharedCounter

NAMES = ("key", "team", "model", "backend", "endpoint")
AMOUNTS = ("requests", "input", "cached", "output", "cost")
"""What is counted for each combination of names; `cost` in nano-dollars."""
_FAMILY = "usage"
_LABEL = "amount"
_MOST = 20_000


class UsageKey(NamedTuple):
    """What usage is counted by."""

    key: str
    team: str
    model: str
    backend: str
    endpoint: str


class UsageStore:
    """Counts the usage of one process. Its file is made when the first request has a cost."""

    def __init__(self, directory: Path, slot: int) -> None:
        self._directory, self._slot = directory, slot
        self._file: ReservedFile | None = None
        self._known: dict[tuple[str, ...], list[SharedCounter]] = {}

    def moves(
        self, outcome: Outcome, charge: Charge
    ) -> list[tuple[Callable[[float], None], float]]:
        """The counters that a request changes, each with its amount. Raises OSError."""
        key = (
            outcome.key or NONE,
            outcome.team or NONE,
            outcome.model,
            outcome.backend or NONE,
            outcome.endpoint,
        )
        requests, prompt, cached, completion, cost = self._known.get(key) or self._counters(
            UsageKey(*key)
        )
        moves: list[tuple[Callable[[float], None], float]] = [(requests.inc, 1)]
        if outcome.prompt_tokens:
            moves.append((prompt.inc, outcome.prompt_tokens))
        if outcome.cached_tokens:
            moves.append((cached.inc, outcome.cached_tokens))
        if outcome.completion_tokens:
            moves.append((completion.inc, outcome.completion_tokens))
        if charge.total:
            moves.append((cost.inc, charge.total))
        return moves

    def _counters(self, key: UsageKey) -> list[SharedCounter]:
        if len(self._known) >= _MOST:
            key = UsageKey(OTHER, OTHER, OTHER, OTHER, OTHER)
            if key in self._known:
                return self._known[key]
        if self._file is None:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._file = ReservedFile(str(self._directory / f"counter_{self._slot}.db"))
        names = [*NAMES, _LABEL]
        counters = [
            SharedCounter(self._file.cell(mmap_key(_FAMILY, _FAMILY, names, [*key, amount], "")))
            for amount in AMOUNTS
        ]
        self._known[key] = counters
        return counters

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class UsageReader:
    """Adds up what all processes have counted since the gateway started."""

    def __init__(
        self, directory: Path, row: Callable[[str], Row | None], pause: Callable[[], None]
    ) -> None:
        self._reader = DirectoryReader(directory, row=row, pause=pause)

    def close(self) -> None:
        self._reader.close()

    def read(self) -> dict[UsageKey, Sequence[int]]:
        """The amounts of each combination of names, in the order of `AMOUNTS`."""
        found: dict[UsageKey, list[int]] = {}
        for family in self._reader.read():
            for labels, value in zip(family.layout.labels, family.values, strict=True):
                key = UsageKey(*(labels[name] for name in NAMES))
                amounts = found.setdefault(key, [0] * len(AMOUNTS))
                amounts[AMOUNTS.index(labels[_LABEL])] = round(value)
        return {key: tuple(amounts) for key, amounts in found.items()}
