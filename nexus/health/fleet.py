"""The fleet as the health process holds it: what is watched, how it stands, and the snapshot that follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from nexus.config import BackendConfig
from nexus.config.changes import Overlay
from nexus.fleet.load_table import COLUMNS
from nexus.fleet.records import Backend, Labels, Model, Snapshot
from nexus.health.model_list import with_configured
from nexus.health.prober import Result
from nexus.health.thresholds import ProbeState
from nexus.metrics.labels import OTHER, assign, retire
from nexus.routing.table import configured_models


@dataclass(slots=True)
class MonitoredBackend:
    """One backend, as its probes have shown it."""

    config: BackendConfig
    column: int
    standing: ProbeState = field(default_factory=ProbeState)
    since: float = 0.0
    latency_ms: float | None = None
    last_error: str | None = None
    models: tuple[Model, ...] = ()
    capacity: int | None = None


class Fleet:
    """Keeps the backends' standing and gives the snapshot of it; does no I/O."""

    def __init__(self, layered: Overlay, *, now: float, before: Snapshot | None) -> None:
        """`before` is the last snapshot of an earlier health process: its labels and findings are taken up.

        Raises `ConfigError` where what was changed at the running gateway does not go together with the file.
        """
        self.layered = layered
        self.config = config = layered.config()
        self.labels = before.labels if before else Labels()
        self.backends: dict[str, MonitoredBackend] = {}
        known = {b.name: b for b in before.backends} if before else {}
        for wanted in config.backends:
            if wanted.provider.unsupported:
                continue
            old = known.get(wanted.name)
            same = old is not None and (old.config.url, old.config.type) == (
                wanted.url,
                wanted.type,
            )
            watched = MonitoredBackend(
                wanted, column=old.column if old is not None and same else -1, since=now
            )
            if old is not None and same:
                watched.standing = ProbeState(old.status)
                watched.since, watched.latency_ms = old.since, old.latency_ms
                watched.last_error, watched.models = old.last_error, old.models
                watched.capacity = old.capacity
            watched.models = tuple(with_configured(watched.models, wanted))
            if not config.health_check.enabled:
                watched.standing = ProbeState("healthy")
            self.backends[wanted.name] = watched

    def give_columns(self, idle: Callable[[list[int]], list[int]]) -> list[int]:
        """Give every backend that has none a column of the shared tables that counts nothing (`idle` says which do).

        Gives the columns that have a new owner.
        """
        used = {watched.column for watched in self.backends.values()}
        free = iter(idle([column for column in range(COLUMNS) if column not in used]))
        given = []
        for watched in self.backends.values():
            if watched.column < 0:
                watched.column = next(free)
                given.append(watched.column)
        return given

    def take(self, name: str, result: Result, *, now: float) -> tuple[str, str] | None:
        """Take up a probe's result; returns (old, new) status where it changed."""
        watched = self.backends[name]
        health = self.config.health_check
        if result.models is not None:
            self.know(name, result)
            watched.latency_ms = round((result.latency_s or 0.0) * 1000, 3)
            watched.last_error = None
        else:
            watched.last_error = result.error
        if not health.enabled:
            return None
        old = watched.standing.status
        watched.standing = watched.standing.after(
            result.success,
            failure_threshold=health.failure_threshold,
            recovery_threshold=health.recovery_threshold,
        )
        if watched.standing.status == old:
            return None
        watched.since = now
        return old, watched.standing.status

    def know(self, name: str, result: Result) -> bool:
        """Take up what is known of a backend's models; gives whether that is new. Equal models stay the same object,
        so that nothing is encoded or decoded anew for them."""
        watched = self.backends[name]
        before = watched.models, watched.capacity
        if result.models is not None and result.models != watched.models:
            watched.models = result.models
        watched.capacity = result.capacity or watched.capacity
        return before != (watched.models, watched.capacity)

    def forget_absent_labels(self) -> None:
        """Keep the labels of present names only; for the start of a gateway, when all counters begin at zero."""
        models = self._models()
        self.labels = Labels(
            models={name: label for name, label in self.labels.models.items() if name in models},
            backends={
                name: label for name, label in self.labels.backends.items() if name in self.backends
            },
        )

    def retire_labels(self, *, monotonic: float) -> None:
        """Take back the labels of names that have been gone for `[metrics] retire_after_hours`."""
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
        """Give these models, which were asked for, a label; returns whether that changed anything."""
        known = self._models()
        wanted = [
            name
            for name in dict.fromkeys(names)
            if name in known and name not in self.labels.models
        ]
        models = assign(
            self.labels.models,
            wanted,
            limit=self.config.metrics.max_models,
            retired=self.labels.retired_models,
        )
        over = tuple(
            dict.fromkeys(
                (*self.labels.models_over, *(name for name in wanted if name not in models))
            )
        )
        changed = len(models) > len(self.labels.models) or over != self.labels.models_over
        self.labels = replace(self.labels, models=models, models_over=over)
        return changed

    def snapshot(self, *, revision: int, now: float) -> Snapshot:
        self.labels = self._labels()
        return Snapshot(
            revision=revision,
            published_at=now,
            config=self.config,
            labels=self.labels,
            backends=tuple(
                Backend(
                    config=watched.config,
                    label=self.labels.backends.get(name, OTHER),
                    column=watched.column,
                    status=watched.standing.status,
                    since=watched.since,
                    latency_ms=watched.latency_ms,
                    last_error=watched.last_error,
                    models=watched.models,
                    capacity=watched.capacity,
                    draining=self.layered.is_drained(name),
                    origin=self.layered.origin(name),
                )
                for name, watched in self.backends.items()
            ),
        )

    def _labels(self) -> Labels:
        """The labels, with those added that configured and discovered names, and models asked for earlier, may have."""
        labels, limits = self.labels, self.config.metrics
        early = [*sorted(self._configured_models()), *labels.models_over]
        models = assign(
            labels.models, early, limit=limits.max_models, retired=labels.retired_models
        )
        at_discovery = max(1, limits.max_models // 2)
        models = assign(
            models, self._discovered_models(), limit=at_discovery, retired=labels.retired_models
        )
        offered = self._models() if labels.models_over else set()
        return replace(
            labels,
            models=models,
            models_over=tuple(
                name for name in labels.models_over if name in offered and name not in models
            ),
            backends=assign(
                labels.backends,
                sorted(self.backends),
                limit=limits.max_backends,
                retired=labels.retired_backends,
            ),
        )

    def _models(self) -> set[str]:
        """All model names that the configuration or a backend has."""
        return {*self._configured_models(), *self._discovered_models()}

    def _configured_models(self) -> set[str]:
        return configured_models(self.config.routing)

    def _discovered_models(self) -> Iterable[str]:
        return dict.fromkeys(
            model.name for watched in self.backends.values() for model in watched.models
        )
