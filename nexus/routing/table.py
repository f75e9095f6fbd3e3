"""The fleet as routing sees it: made once for each snapshot, asked at every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nexus.config.loading import ALIAS_DEPTH
from nexus.fleet.records import Backend, Model, Snapshot
from nexus.routing.requirements import Requirements


@dataclass(frozen=True, slots=True)
class Offer:
    """A model on a backend."""

    backend: Backend
    model: Model

    def meets(self, needs: Requirements) -> bool:
        model = self.model
        return (
            (model.vision or not needs.vision)
            and (model.tools or not needs.tools)
            and (model.json_mode or not needs.json_mode)
            and (needs.context <= model.context_length or not model.context_known)
        )


class RouteTable:
    """Aliases, fallback chains, and who offers what."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.routing = snapshot.config.routing
        self.backends: Sequence[Backend] = snapshot.backends
        self.offers: dict[str, list[Offer]] = {}
        for backend in snapshot.backends:
            for model in backend.models:
                self.offers.setdefault(model.name, []).append(Offer(backend, model))
        self.healthy: dict[str, list[Offer]] = {
            name: usable
            for name, offers in self.offers.items()
            if (usable := [offer for offer in offers if offer.backend.status == "healthy"])
        }
        self.undiscovered = any(backend.status == "unknown" for backend in snapshot.backends)

    def resolve(self, name: str) -> str:
        """The name that an alias stands for, up to three deep; itself where it is none."""
        aliases = self.routing.aliases
        for _ in range(ALIAS_DEPTH):
            if name not in aliases:
                break
            name = aliases[name]
        return name

    def chain(self, model: str) -> tuple[str, ...]:
        """The model, then those that may stand in for it."""
        fallbacks = self.routing.fallbacks.get(model)
        return (model, *fallbacks) if fallbacks else (model,)
