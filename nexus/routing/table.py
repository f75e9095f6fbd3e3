"""The fleet as routing sees it: made once for each snapshot, asked at every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nexus.config.loading import ALIAS_DEPTH
from nexus.fleet.records import Backend, Model, Snapshot
from nexus.routing.names import is_pattern, matches, ollama_form
from nexus.routing.policies import NOTHING, Demands, Policies
from nexus.routing.requirements import Needs

CAPABILITIES = {"vision": "images", "tools": "tools", "json_mode": "JSON mode"}
"""Fields of `Model` and `Needs` that say what a model can do → what a client calls it."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model on a backend."""

    backend: Backend
    model: Model

    def lacks(self, needs: Needs) -> list[str]:
        """What the request asks for and the model is known not to do."""
        model = self.model
        lacking = [
            word for field, word in CAPABILITIES.items() if getattr(model, field) is False and getattr(needs, field)
        ]
        if model.tasks and needs.task and needs.task not in model.tasks:
            lacking.append(needs.task)
        return lacking

    def can(self, needs: Needs) -> bool:
        """Whether nothing is known that speaks against it."""
        return not self.lacks(needs)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The offers of a model that may serve requests of one sort, before anything is asked that changes by the moment.

    `lengths_differ`: more than one context length is known of them. `preferred`: the best priority among them.
    """

    offers: tuple[Offer, ...]
    lengths_differ: bool
    preferred: int


_NO_CANDIDATES = Candidates((), False, 0)


class RouteTable:
    """Names, fallback chains, policies, and who offers what."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.routing = snapshot.config.routing
        self.policies = Policies(self.routing.policies)
        self.backends: Sequence[Backend] = snapshot.backends
        self.offers: dict[str, list[Offer]] = {}
        for backend in snapshot.backends:
            for model in backend.models:
                self.offers.setdefault(model.name, []).append(Offer(backend, model))
        self._patterns = [name for name in self.offers if is_pattern(name)]
        self._listed_as: dict[str, str] = {}
        self._ollama: dict[str, str] = {}
        self._take_equivalents()
        self.healthy: dict[str, list[Offer]] = {
            name: usable
            for name, offers in self.offers.items()
            if (usable := [offer for offer in offers if offer.backend.usable])
        }
        self._decisive = {name: fields for name, offers in self.healthy.items() if (fields := _decisive_fields(offers))}
        self._chains = {
            self.listed(name): tuple(dict.fromkeys(map(self.listed, (name, *chain))))
            for name, chain in self.routing.fallbacks.items()
        }
        self.undiscovered = any(backend.status == "unknown" for backend in snapshot.backends)
        self._candidates: dict[tuple[str, Demands, tuple[object, ...]], Candidates] = {}

    def _take_equivalents(self) -> None:
        """Learn other names for what is listed; where a backend lists such a name itself, both serve it."""
        others: dict[str, list[Offer]] = {}
        by_form: dict[str, list[Offer]] = {}
        for name, offers in self.offers.items():
            for offer in offers:
                for alias in offer.model.aliases:
                    self._listed_as.setdefault(alias, name)
                    others.setdefault(alias, []).append(offer)
                if offer.backend.config.type == "ollama":
                    self._ollama.setdefault(ollama_form(name), name)
                    by_form.setdefault(ollama_form(name), []).append(offer)
        for name, offers in self.offers.items() if others or by_form else ():
            having = {offer.backend.name for offer in offers}
            for offer in others.get(name, []) + (by_form.get(ollama_form(name), []) if by_form else []):
                if offer.backend.name not in having:
                    having.add(offer.backend.name)
                    offers.append(offer)

    def resolve(self, name: str) -> str:
        """The listed name of what a client asks for: aliases followed up to three deep, equivalent names known."""
        aliases = self.routing.aliases
        for _ in range(ALIAS_DEPTH):
            if name not in aliases:
                break
            name = aliases[name]
        return self.listed(name)

    def listed(self, name: str) -> str:
        """The name that a backend lists for this one; itself if none does."""
        if name in self.offers:
            return name
        other = self._listed_as.get(name)
        if other is None and self._ollama:
            other = self._ollama.get(ollama_form(name))
        return name if other is None else other

    def entry(self, name: str) -> str:
        """The listed name or pattern that covers a resolved name; itself if none does."""
        if name not in self.offers and self._patterns:
            return next((pattern for pattern in self._patterns if matches(name, pattern)), name)
        return name

    def chain(self, model: str, demands: Demands = NOTHING) -> tuple[str, ...]:
        """The model, then those that may stand in for it."""
        return (None if demands.own_model else self._chains.get(model)) or (model,)

    def demands(self, *names: str) -> Demands:
        return self.policies.demands(*names) if self.policies else NOTHING

    def offers_of(self, model: str) -> Sequence[Offer]:
        """Who has the model, well or not."""
        return self.offers.get(self.entry(model), ())

    def candidates(self, model: str, needs: Needs, demands: Demands) -> Candidates:
        """Healthy backends that have the model, may serve it, and are not known to lack what is asked.

        Found once for each sort of request. Of the needs only those are read that tell the backends apart.
        """
        name = self.entry(model)
        offers = self.healthy.get(name)
        if offers is None:
            return _NO_CANDIDATES
        fields = self._decisive.get(name)
        key = (name, demands, tuple([getattr(needs, field) for field in fields]) if fields else ())
        found = self._candidates.get(key)
        if found is None:
            demands |= self.demands(name)
            good = tuple(o for o in offers if o.can(needs) and demands.rejects(o.backend) is None)
            found = self._candidates[key] = Candidates(
                offers=good,
                lengths_differ=len({o.model.context_length for o in good} - {None}) > 1,
                preferred=min((o.backend.config.priority for o in good), default=0),
            )
        return found


def _decisive_fields(offers: Sequence[Offer]) -> tuple[str, ...]:
    """The fields of `Needs` of which some of the offers are known to lack something."""
    fields = [field for field in CAPABILITIES if any(getattr(offer.model, field) is False for offer in offers)]
    if any(offer.model.tasks for offer in offers):
        fields.append("task")
    return tuple(fields)
