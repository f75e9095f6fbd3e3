"""The fleet as the health process holds it: the backends, their state, and the snapshot of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace

from nexus.config import BackendConfig
from nexus.config.overlay import Overlay
from nexus.fleet.load_table import COLUMNS
from nexus.fleet.records import Backend, Labels, Snapshot
from nexus.health.model_list import with_configured
from nexus.health.prober import ProbeOutcome
from nexus.health.thresholds import ProbeState
from nexus.metrics.labels import OTHER, assign, retire
from nexus.routing.table import configured_models


class Fleet:
    """Applies results of probes and makes the snapshot; does no I/O.

    Attributes:
        overlay: The configuration file with the changes of operators.
        config: The configuration that follows from it.
        backends: As the probes have shown them. The snapshot adds what follows from labels and
            operators. `column` is -1 until one is assigned.
    """

    def __init__(self, overlay: Overlay, *, now: float, before: Snapshot | None) -> None:
        """Keep labels and states of `before`, the last snapshot.

        Raises `ConfigError` if the changes of operators contradict the file.
        """
        self.overlay = overlay
        self.config = config = overlay.config()
        self.labels = before.labels if before else Labels()
        known = {b.name: b for b in before.backends} if before else {}
        self.backends = {
            wanted.name: _known(wanted, known.get(wanted.name), now=now)
            for wanted in config.backends
        }
        if not config.health_check.enabled:
            for name in self.backends:
                self._update(name, status="healthy")

    def assign_columns(self, idle: Callable[[list[int]], list[int]]) -> list[int]:
        """Assign a column of the shared tables to every backend that has none.

        `idle` returns those of the given columns that count nothing now. Returns the columns that
        have a new owner.
        """
        used = {backend.column for backend in self.backends.values()}
        free = iter(idle([column for column in range(COLUMNS) if column not in used]))
        assigned = []
        for name, backend in self.backends.items():
            if backend.column < 0:
                assigned.append(next(free))
                self._update(name, column=assigned[-1])
        return assigned

    def apply_result(
        self, name: str, result: ProbeOutcome, *, now: float
    ) -> tuple[str, str] | None:
        """Apply a probe's result; returns (old, new) status if it changed."""
        health = self.config.health_check
        if result.models is not None:
            self.apply_models(name, result)
            latency_ms = round((result.latency_s or 0.0) * 1000, 3)
            self._update(name, latency_ms=latency_ms, last_error=None)
        else:
            self._update(name, last_error=result.error)
        if not health.enabled:
            return None
        before = self.backends[name]
        state = ProbeState(before.status, before.contrary).after(
            result.success,
            failure_threshold=health.failure_threshold,
            recovery_threshold=health.recovery_threshold,
        )
        self._update(name, status=state.status, contrary=state.contrary)
        if state.status == before.status:
            return None
        self._update(name, since=now)
        return before.status, state.status

    def apply_models(self, name: str, result: ProbeOutcome) -> bool:
        """Apply the models and the capacity of a probe; returns whether anything changed.

        Equal models stay the same object, so that their pages are not encoded again.
        """
        before = self.backends[name]
        if result.models is not None and result.models != before.models:
            self._update(name, models=result.models)
        self._update(name, capacity=result.capacity or before.capacity)
        return before != self.backends[name]

    def apply_dialects(self, name: str, dialects: frozenset[str]) -> bool:
        """Apply what a backend was found to speak; returns whether that is something else."""
        before = set(self.backends[name].spoken)
        self._update(name, dialects=dialects)
        return before != dialects

    def label(self, name: str) -> str:
        """The label value of a backend."""
        return self.labels.backends.get(name, OTHER)

    def forget_absent_labels(self) -> None:
        """Drop the labels of absent names, when a new gateway starts with all counters at zero."""
        models = self._models()
        self.labels = Labels(
            models={name: label for name, label in self.labels.models.items() if name in models},
            backends={
                name: label for name, label in self.labels.backends.items() if name in self.backends
            },
        )

    def retire_labels(self, *, monotonic: float) -> None:
        """Retire the labels of names that were absent for `[metrics] retire_after_hours`."""
        labels, after_s = self.labels, self.config.metrics.retire_after_hours * 3600
        models, retired_models, models_gone = retire(
            labels.models, self._models(), labels.models_gone_since, now=monotonic, after_s=after_s
        )
        backends, retired_backends, backends_gone = retire(
            labels.backends,
            self.backends.keys(),
            labels.backends_gone_since,
            now=monotonic,
            after_s=after_s,
        )
        self.labels = replace(
            labels,
            models=models,
            retired_models=(*labels.retired_models, *retired_models),
            models_gone_since=models_gone,
            backends=backends,
            retired_backends=(*labels.retired_backends, *retired_backends),
            backends_gone_since=backends_gone,
        )

    def label_models(self, names: Iterable[str]) -> bool:
        """Label these models, which requests use; returns whether anything changed."""
        labels, known = self.labels, self._models()
        wanted = [n for n in dict.fromkeys(names) if n in known and n not in labels.models]
        models = assign(
            labels.models,
            wanted,
            limit=self.config.metrics.max_models,
            retired=labels.retired_models,
        )
        without = (name for name in wanted if name not in models)
        over = tuple(dict.fromkeys((*labels.models_over, *without)))
        changed = len(models) > len(labels.models) or over != labels.models_over
        self.labels = replace(labels, models=models, models_over=over)
        return changed

    def snapshot(self, *, revision: int, now: float) -> Snapshot:
        self.labels = self._extended_labels()
        return Snapshot(
            revision=revision,
            published_at=now,
            config=self.config,
            labels=self.labels,
            grants=self.overlay.grants,
            backends=tuple(
                replace(
                    backend,
                    label=self.label(name),
                    draining=self.overlay.is_drained(name),
                    origin=self.overlay.origin(name),
                )
                for name, backend in self.backends.items()
            ),
        )

    def _update(self, name: str, **changes: Any) -> None:
        self.backends[name] = replace(self.backends[name], **changes)

    def _extended_labels(self) -> Labels:
        """The labels, with new ones for backends and models.

        Configured models, and models that requests used, may have any free label. Models that were
        only discovered get a label while fewer than half of `max_models` have one.
        """
        labels, limits = self.labels, self.config.metrics
        first = [*sorted(configured_models(self.config.routing)), *labels.models_over]
        models = assign(
            labels.models, first, limit=limits.max_models, retired=labels.retired_models
        )
        models = assign(
            models,
            self._discovered_models(),
            limit=max(1, limits.max_models // 2),
            retired=labels.retired_models,
        )
        present = self._models() if labels.models_over else set()
        return replace(
            labels,
            models=models,
            models_over=tuple(
                name for name in labels.models_over if name in present and name not in models
            ),
            backends=assign(
                labels.backends,
                sorted(self.backends),
                limit=limits.max_backends,
                retired=labels.retired_backends,
            ),
            keys=assign(labels.keys, (key.id for key in self.config.keys), limit=limits.max_keys),
            teams=assign(
                labels.teams, (team.name for team in self.config.teams), limit=limits.max_keys
            ),
        )

    def _models(self) -> set[str]:
        """All model names that the configuration or a backend has."""
        return {*configured_models(self.config.routing), *self._discovered_models()}

    def _discovered_models(self) -> Iterable[str]:
        return dict.fromkeys(
            model.name for backend in self.backends.values() for model in backend.models
        )


def _known(config: BackendConfig, before: Backend | None, *, now: float) -> Backend:
    """A backend that keeps what was known of it, unless it is another server now."""
    if before is None or (before.config.url, before.config.type) != (config.url, config.type):
        before = Backend(config=config, label="", column=-1, since=now)
    return replace(before, config=config, models=tuple(with_configured(before.models, config)))
