"""The fleet as routing sees it: made once for each snapshot, asked at every request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import msgspec

from nexus.config.fields import MAX_ALIAS_DEPTH
from nexus.config.routing_records import Affinity, Routing
from nexus.fleet.records import Backend, Snapshot
from nexus.providers.base import DIALECTS
from nexus.routing.affinity import Placement, Session, rendezvous_order
from nexus.routing.candidate import CAPABILITIES, Candidate
from nexus.routing.listing import Listing
from nexus.routing.needs import Needs
from nexus.routing.policies import NOTHING, Constraints, Policies

AFFINITY_STRATEGIES = ("smart", "priority_only")
"""The strategies that affinity refines; the others spread requests, whatever they are."""


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """The candidates of a model that may serve requests of one sort, whatever the moment.

    Attributes:
        lengths_differ: More than one context length is known of them.
        preferred: The best priority among them.
        known: The number of all candidates of the model, the unsuitable ones included.
        caching: The priorities that several backends have, all of kinds that cache prompts.
        one_priority: All have the same priority.
        translations: Those that need a translation, by the columns of their backends.
    """

    candidates: tuple[Candidate, ...]
    lengths_differ: bool
    preferred: int
    known: int
    caching: frozenset[int]
    one_priority: bool
    translations: Mapping[int, str] = field(default_factory=dict)
    _by_column: dict[int, Candidate] = field(default_factory=dict, compare=False)
    _orders: dict[tuple[bytes, str], tuple[Candidate, ...]] = field(
        default_factory=dict, compare=False
    )

    def placement(
        self, session: Session, model: str, holders: Callable[[int], tuple[int, ...]]
    ) -> Placement:
        """Where a session's requests for the model go; `holders` finds who has a start of a
        prompt."""
        by_column, has_id = self._by_column, session.source != "prefix"
        if session.keys and not by_column:
            by_column.update((one.backend.column, one) for one in self.candidates)
        for n, key in enumerate(session.keys):
            if columns := holders(key):
                homes = [by_column[column] for column in columns if column in by_column]
                if homes:
                    order: Sequence[Candidate] = self.candidates
                    if has_id:
                        order = sorted(
                            self.order(session, model),
                            key=lambda one: one.backend.column not in columns,
                        )
                        homes = order[: len(homes)]
                    return Placement(session, order, homes, session.ends[n], n + 1)
        order = self.order(session, model)
        return Placement(session, order, order[:1], None if has_id else 0)

    def order(self, session: Session, model: str) -> tuple[Candidate, ...]:
        """All of them, in the order in which the session's requests try them."""
        key = session.digest, model
        order = self._orders.get(key)
        if order is None:
            if len(self._orders) >= _MOST_ORDERS:
                self._orders.clear()
            order = self._orders[key] = rendezvous_order(self.candidates, session, model)
        return order


_MOST_ORDERS = 4096
"""Orders that are kept for each set: making one takes a few microseconds for each candidate."""
_NO_CANDIDATES = CandidateSet((), False, 0, 0, frozenset(), one_priority=True)


class CandidateSource(Mapping[str, Sequence[Candidate]]):
    """Listed name → its offers at the backends in these positions. Each is made when it is first
    asked for."""

    def __init__(
        self, listing: Listing, backends: Sequence[Backend], positions: frozenset[int]
    ) -> None:
        self._listing = listing
        self._backends = backends
        self._positions = positions
        self._made: dict[str, list[Candidate]] = {}

    def __getitem__(self, name: str) -> Sequence[Candidate]:
        candidates = self._made.get(name)
        if candidates is None:
            listed = self._listing.by_name[name]
            candidates = [
                Candidate(self._backends[at], model)
                for at, model in listed
                if at in self._positions
            ]
            if not candidates:
                raise KeyError(name)
            self._made[name] = candidates
        return candidates

    def __iter__(self) -> Iterator[str]:
        return iter(self._listing.names(self._positions))

    def __len__(self) -> int:
        return len(self._listing.names(self._positions))


class RouteTable:
    """Names, fallback chains, policies, and who offers what.

    Attributes:
        affinity: The settings of affinity.
        uses_affinity: Whether it may matter in this fleet.
        listing: What the models alone decide; `before` had the same one if no backend's models have
            changed.
        offers: All offers of a listed name.
        healthy: Those at backends that may be given requests.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        before: RouteTable | None = None,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        """`before` is the table of an earlier snapshot; `pause` is called now and then, so that
        others can run."""
        self.snapshot = snapshot
        self.routing = snapshot.config.routing
        self.policies = Policies(self.routing.policies)
        self.backends: Sequence[Backend] = snapshot.backends
        same = before is not None and before.listing.made_from(self.backends)
        self.listing: Listing = (
            before.listing if before is not None and same else Listing(self.backends, pause)
        )
        usable = frozenset(at for at, backend in enumerate(self.backends) if backend.usable)
        self.candidates = CandidateSource(
            self.listing, self.backends, frozenset(range(len(self.backends)))
        )
        self.healthy = CandidateSource(self.listing, self.backends, usable)
        self.affinity = _normalized(self.routing.affinity)
        self.uses_affinity = (
            self.affinity.enabled
            and self.routing.strategy in AFFINITY_STRATEGIES
            and sum(one.config.type in self.affinity.kinds for one in self.backends) > 1
        )
        self._decisive: dict[str, tuple[str, ...]] = {}
        self._chains = {
            chain[0]: chain
            for chain in (
                tuple(dict.fromkeys((self.listed(name), *map(self.resolve, fallbacks))))
                for name, fallbacks in self.routing.fallbacks.items()
            )
        }
        self.undiscovered = any(backend.status == "unknown" for backend in self.backends)
        self._candidates: dict[tuple[str, Constraints, tuple[object, ...]], CandidateSet] = {}

    def resolve(self, name: str) -> str:
        """The listed name of what a client asks for: aliases followed up to three deep,
        equivalent names known."""
        aliases = self.routing.aliases
        depth = 0
        while name in aliases and depth < MAX_ALIAS_DEPTH:
            name, depth = aliases[name], depth + 1
        return name if name in self.listing.by_name else self.listed(name)

    def listed(self, name: str) -> str:
        """The name that a backend lists for this one; itself if none does."""
        return self.listing.listed_name(name)

    def entry(self, name: str) -> str:
        """The listed name or pattern that covers a resolved name; itself if none does."""
        if name not in self.listing.by_name and self.listing.patterns:
            return next(
                (pattern for pattern in self.listing.patterns if fnmatchcase(name, pattern)), name
            )
        return name

    def chain(self, model: str, constraints: Constraints = NOTHING) -> tuple[str, ...]:
        """The model, then those that may stand in for it."""
        return (None if constraints.own_model else self._chains.get(model)) or (model,)

    def constraints(self, *names: str) -> Constraints:
        return self.policies.constraints(*names) if self.policies.rules else NOTHING

    def candidates_for(self, model: str) -> Sequence[Candidate]:
        """Who has the model, well or not."""
        return self.candidates.get(self.entry(model), ())

    def suitable(self, model: str, needs: Needs, constraints: Constraints) -> CandidateSet:
        """Healthy backends that have the model, may serve it, and are not known to lack what is
        asked.

        Found once for each sort of request. Of the needs only those are read that tell the backends
        apart.
        """
        name = model
        if self.listing.patterns and (name := self.entry(model)) != model:
            constraints |= self.constraints(model)  # policies may name what a pattern only covers
        fields = self._decisive.get(name)
        if fields is None:
            if name not in self.healthy:
                return _NO_CANDIDATES
            fields = self._decisive[name] = _decisive_fields(self.healthy[name])
        key = (
            name,
            constraints,
            tuple([getattr(needs, field) for field in fields]) if fields else (),
        )
        found = self._candidates.get(key)
        if found is None:
            constraints |= self.constraints(name)
            good = tuple(
                candidate
                for candidate in self.healthy[name]
                if candidate.unsuitable(needs, constraints) is None
            )
            found = self._candidates[key] = CandidateSet(
                candidates=good,
                lengths_differ=len({one.model.context_length for one in good} - {None}) > 1,
                preferred=min((one.backend.config.priority for one in good), default=0),
                known=len(self.candidates[name]),
                caching=self._caching(good),
                one_priority=len({one.backend.config.priority for one in good}) <= 1,
                translations={
                    one.backend.column: translation
                    for one in good
                    if (translation := one.translation(needs)) is not None
                },
            )
        return found

    def _caching(self, candidates: Sequence[Candidate]) -> frozenset[int]:
        """The priorities at which affinity decides between several of these."""
        settings = self.affinity
        if not self.uses_affinity:
            return frozenset()
        kinds: dict[int, list[str]] = defaultdict(list)
        for candidate in candidates:
            config = candidate.backend.config
            kinds[config.priority].append(config.type)
        return frozenset(
            priority
            for priority, types in kinds.items()
            if len(types) > 1 and set(types).issubset(settings.kinds)
        )


def _normalized(settings: Affinity) -> Affinity:
    """With the names of headers as requests have them: in lower case."""
    headers = [name.lower() for name in settings.headers]
    return msgspec.structs.replace(settings, headers=headers)


def configured_models(routing: Routing) -> set[str]:
    """The model names that the configuration mentions as aliases, their targets, or fallbacks."""
    fallbacks = {model for chain in routing.fallbacks.values() for model in chain}
    return {*routing.aliases, *routing.aliases.values(), *routing.fallbacks, *fallbacks}


def _decisive_fields(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The fields of `Needs` of which some of the offers are known to lack something. For most
    fleets these are none."""
    fields = [
        field
        for field in CAPABILITIES
        if any(getattr(candidate.model, field) is False for candidate in candidates)
    ]
    if any(candidate.model.tasks for candidate in candidates):
        fields.append("task")
    if any(not DIALECTS.issubset(candidate.backend.spoken) for candidate in candidates):
        fields += ["dialect", "translations"]
    return tuple(fields)
