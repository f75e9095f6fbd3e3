"""The fleet as one frozen tree: what the health process publishes and every other process reads."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import msgspec

from nexus.config import BackendConfig, Config
from nexus.config.changes import Origin
from nexus.providers.probing import Model

__all__ = ["Backend", "Labels", "Model", "Snapshot", "Status"]

Status = Literal["unknown", "healthy", "unhealthy"]


class Backend(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A backend and how it is. `since` in Unix seconds, `latency_ms` of its last good probe.

    `capacity`: how many requests it works on at once, where it tells that itself. `draining`: it
    gets no new requests.
    """

    config: BackendConfig
    label: str
    column: int
    status: Status = "unknown"
    since: float = 0.0
    latency_ms: float | None = None
    last_error: str | None = None
    models: tuple[Model, ...] = ()
    capacity: int | None = None
    draining: bool = False
    origin: Origin = "file"

    @property
    def usable(self) -> bool:
        """Whether it may be given requests, as far as probes and operators say."""
        return self.status == "healthy" and not self.draining

    @property
    def name(self) -> str:
        return self.config.name

    @cached_property
    def limit(self) -> int | None:
        """The most requests that it is given at once: as configured, else as it tells; None for
        no limit."""
        return (
            self.config.max_concurrent if self.config.max_concurrent is not None else self.capacity
        )

    @property
    def cloud(self) -> bool:
        return self.config.provider.cloud

    @property
    def restricted(self) -> bool:
        """Whether what is sent there stays in-house: a restricted zone, or a local kind without
        a zone."""
        return not self.cloud if self.config.zone is None else self.config.zone != "open"


class Labels(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Real name → label value (see `metrics/labels.py`).

    `retired_*`: label values that their names gave back. `*_gone_since`: absent names that still
    have a label, and since when they are gone, by the monotonic clock. `models_over`: models that
    were asked for and got no label.
    """

    models: dict[str, str] = {}
    backends: dict[str, str] = {}
    keys: dict[str, str] = {}
    teams: dict[str, str] = {}
    retired_models: tuple[str, ...] = ()
    retired_backends: tuple[str, ...] = ()
    models_gone_since: dict[str, float] = {}
    backends_gone_since: dict[str, float] = {}
    models_over: tuple[str, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet at one moment, with the configuration that holds for it. `published_at` in Unix
    seconds."""

    revision: int
    published_at: float
    config: Config
    backends: tuple[Backend, ...] = ()
    labels: Labels = Labels()
