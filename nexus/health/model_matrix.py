"""The dashboard's table of models and the backends that have them."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

from nexus.fleet.records import Model, Snapshot

_MIN_MODELS, _MAX_MODELS, _MAX_CELLS = 5, 100, 1000
"""Many backends mean fewer rows: a page of thousands would be rendered and sent every second."""

_Lists = tuple[tuple[str, tuple[Model, ...]], ...]


@dataclass(frozen=True)
class ModelMatrix:
    """The first models by name, each with the backends that have it and its capabilities there.

    Attributes:
        lists: Name and models of each backend, from which it was made.
        hidden: Number of models without a row.
    """

    lists: _Lists
    rows: list[dict[str, Any]]
    hidden: int

    def updated(self, snapshot: Snapshot) -> ModelMatrix:
        """This matrix if no backend's models have changed, else a new one."""
        lists = tuple((backend.name, backend.models) for backend in snapshot.backends)
        same = len(lists) == len(self.lists) and all(
            name == before and models is known
            for (name, models), (before, known) in zip(lists, self.lists, strict=True)
        )
        return self if same else ModelMatrix.of(lists)

    @classmethod
    def of(cls, lists: _Lists) -> ModelMatrix:
        names = {model.name for _, models in lists for model in models}
        limit = max(_MIN_MODELS, min(_MAX_MODELS, _MAX_CELLS // max(1, len(lists))))
        backends: dict[str, dict[str, Any]] = {name: {} for name in heapq.nsmallest(limit, names)}
        for backend, models in lists:
            for model in models:
                if model.name in backends:
                    backends[model.name][backend] = _cell(model)
        rows = [{"name": name, "backends": cells} for name, cells in backends.items()]
        return cls(lists, rows, len(names) - len(rows))


def _cell(model: Model) -> dict[str, Any]:
    can = [word for word, on in (("vision", model.vision), ("tools", model.tools)) if on]
    if model.json_mode is False:
        can.append("no JSON mode")  # nearly all models have it
    return {"can": [*can, *model.tasks], "context": model.context_length}
