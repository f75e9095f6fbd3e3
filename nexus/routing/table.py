"""The fleet as routing sees it: made once for each snapshot, asked at every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nexus.config.loading import ALIAS_DEPTH
from nexus.fleet.records import Backend, Model, Snapshot
from nexus.routing.policies import NOTHING, Demands, Policies
from nexus.routing.requirements import Requirements


@dataclass(frozen=True, slots=True)
class Offer:
    """A model on a backend."""

    backend: Backend
    model: Model

    def can(self, needs: Requirements) -> bool:
        """Whether the model can do what is asked; a context length that was only guessed refuses nobody."""
        model = self.model
        return (
            (model.vision or not needs.vision)
            and (model.tools or not needs.tools)
            and (model.json_mode or not needs.json_mode)
            and (needs.context <= model.context_length or not model.context_known)
        )


@dataclass(frozen=True, slots=True)
class Candidates:
    """The offers of a model that may serve requests of one sort, before anything is asked that changes by the moment.

    `least_context`: a context up to which all of them are good. `preferred`: the best priority among them.
    """

    offers: tuple[Offer, ...]
    least_context: int
    preferred: int

    def good_for(self, needs: Requirements) -> Sequence[Offer]:
        if needs.context <= self.least_context:
            return self.offers
        return [offer for offer in self.offers if offer.can(needs)]


_NO_CANDIDATES = Candidates((), 0, 0)
_NO_LIMIT = 1 << 62


class RouteTable:
    """Aliases, fallback chains, policies, and who offers what."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.routing = snapshot.config.routing
        self.policies = Policies(self.routing.policies)
        self.backends: Sequence[Backend] = snapshot.backends
        self.offers: dict[str, list[Offer]] = {}
        for backend in snapshot.backends:
            for model in backend.models:
                self.offers.setdefault(model.name, []).append(Offer(backend, model))
        self.healthy: dict[str, list[Offer]] = {
            name: usable
            for name, offers in self.offers.items()
            if (usable := [offer for offer in offers if offer.backend.usable])
        }
        self.undiscovered = any(backend.status == "unknown" for backend in snapshot.backends)
        self._candidates: dict[tuple[str, bool, bool, bool, Demands], Candidates] = {}

    def resolve(self, name: str) -> str:
        """The name that an alias stands for, up to three deep; itself where it is none."""
        aliases = self.routing.aliases
        for _ in range(ALIAS_DEPTH):
            if name not in aliases:
                break
            name = aliases[name]
        return name

    def chain(self, model: str, demands: Demands = NOTHING) -> tuple[str, ...]:
        """The model, then those that may stand in for it."""
        fallbacks = None if demands.own_model else self.routing.fallbacks.get(model)
        return (model, *fallbacks) if fallbacks else (model,)

    def demands(self, *names: str) -> Demands:
        return self.policies.demands(*names) if self.policies else NOTHING

    def candidates(self, model: str, needs: Requirements, demands: Demands) -> Candidates:
        """Healthy backends that have the model, can do what is asked, and may serve it. Found once for each sort."""
        offers = self.healthy.get(model)
        if offers is None:
            return _NO_CANDIDATES
        key = (model, needs.vision, needs.tools, needs.json_mode, demands)
        found = self._candidates.get(key)
        if found is None:
            needs = Requirements(vision=needs.vision, tools=needs.tools, json_mode=needs.json_mode)
            demands |= self.demands(model)
            good = tuple(o for o in offers if o.can(needs) and demands.rejects(o.backend) is None)
            found = self._candidates[key] = Candidates(
                offers=good,
                least_context=min((o.model.context_length for o in good if o.model.context_known), default=_NO_LIMIT),
                preferred=min((o.backend.config.priority for o in good), default=0),
            )
        return found
