"""Which backends list which model, and the other names that these are known by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from nexus.fleet.records import Backend, Model

_Canonical = Callable[[str], str]
"""`Provider.canonical_name` of a kind."""
_Listed = tuple[int, Model]
"""A backend's position in the snapshot, and the model as it lists it."""
_PAUSE_EVERY = 500
"""Models between two pauses, about half a millisecond."""


def is_pattern(name: str) -> bool:
    """Whether a listed name stands for many, as LiteLLM's `provider/*` does."""
    return "*" in name


class Listing:
    """Follows from the backends' models and kinds alone: snapshots in which these are the same
    share one.

    Attributes:
        by_name: Listed name → the backends that serve it. A backend that takes the name for one of
            its own is among them.
        listed_as: A backend's other name for a model → the name that it lists.
        patterns: Listed names that stand for many.
    """

    def __init__(
        self, backends: Sequence[Backend], pause: Callable[[], object] = lambda: None
    ) -> None:
        """`pause` is called now and then, so that others can run."""
        self._made_from = _source(backends)
        self._names: dict[frozenset[int], tuple[str, ...]] = {}
        self.by_name: dict[str, list[_Listed]] = {}
        self.listed_as: dict[str, str] = {}
        self._canonical: dict[_Canonical, dict[str, str]] = {}
        others: dict[str, list[_Listed]] = {}
        by_form: dict[tuple[_Canonical, str], list[_Listed]] = {}
        for position, backend in enumerate(backends):
            canonical = backend.config.provider.canonical_name
            for number, model in enumerate(backend.models):
                listed = (position, model)
                self.by_name.setdefault(model.name, []).append(listed)
                for alias in model.aliases:
                    self.listed_as.setdefault(alias, model.name)
                    others.setdefault(alias, []).append(listed)
                if canonical is not None:
                    form = canonical(model.name)
                    self._canonical.setdefault(canonical, {}).setdefault(form, model.name)
                    by_form.setdefault((canonical, form), []).append(listed)
                if number % _PAUSE_EVERY == 0:
                    pause()
        self.patterns = [name for name in self.by_name if is_pattern(name)]
        if others or by_form:
            self._add_equivalents(others, by_form, pause)

    def _add_equivalents(
        self,
        others: dict[str, list[_Listed]],
        by_form: dict[tuple[_Canonical, str], list[_Listed]],
        pause: Callable[[], object],
    ) -> None:
        for number, (name, listed) in enumerate(self.by_name.items()):
            having = {position for position, _ in listed}
            same = [others.get(name, ())]
            same += [by_form.get((form, form(name)), ()) for form in self._canonical]
            for position, model in chain.from_iterable(same):
                if position not in having:
                    having.add(position)
                    listed.append((position, model))
            if number % _PAUSE_EVERY == 0:
                pause()

    def listed_name(self, name: str) -> str:
        """The listed name of the model that a backend knows by this name; `name` if none does."""
        if name in self.by_name:
            return name
        listed = self.listed_as.get(name)
        for canonical, by_form in self._canonical.items() if listed is None else ():
            if (listed := by_form.get(canonical(name))) is not None:
                break
        return name if listed is None else listed

    def made_from(self, backends: Sequence[Backend]) -> bool:
        """Whether it holds for these backends as well."""
        source = _source(backends)
        return len(source) == len(self._made_from) and all(
            kind == before and models is known
            for (kind, models), (before, known) in zip(source, self._made_from, strict=True)
        )

    def names(self, positions: frozenset[int]) -> tuple[str, ...]:
        """The names that one of the backends at these positions serves; kept for as long as they
        are asked for."""
        names = self._names.get(positions)
        if names is None:
            found = (
                name
                for name, listed in self.by_name.items()
                if any(at in positions for at, _ in listed)
            )
            self._names = dict([*self._names.items()][-1:])
            names = self._names[positions] = tuple(found)
        return names


def _source(backends: Sequence[Backend]) -> tuple[tuple[str, tuple[Model, ...]], ...]:
    return tuple((backend.config.type, backend.models) for backend in backends)
