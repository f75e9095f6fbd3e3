"""The fleet as one frozen tree: what the health process publishes and every other process reads."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Literal

import msgspec

from nexus.config import BackendConfig, Config
from nexus.config.budget_records import Grant
from nexus.config.overlay import Origin
from nexus.providers.probing import Model

__all__ = ["Backend", "Labels", "Model", "Snapshot", "Status"]

Status = Literal["unknown", "healthy", "unhealthy"]


class Backend(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A backend and its state.

    Attributes:
        column: Its column in the shared tables.
        contrary: How many results of probes in a row contradict its status.
        since: When its status last changed, in Unix seconds.
        latency_ms: Duration of its last successful probe.
        capacity: How many requests it works on at once, if it reports that.
        dialects: Those that it was found to speak; None until it was asked.
        draining: It gets no new requests.
    """

    config: BackendConfig
    label: str
    column: int
    status: Status = "unknown"
    contrary: int = 0
    since: float = 0.0
    latency_ms: float | None = None
    last_error: str | None = None
    models: tuple[Model, ...] = ()
    capacity: int | None = None
    dialects: frozenset[str] | None = None
    draining: bool = False
    origin: Origin = "file"

    @property
    def usable(self) -> bool:
        """Whether it may get requests, according to probes and operators."""
        return self.status == "healthy" and not self.draining

    @property
    def name(self) -> str:
        return self.config.name

    @cached_property
    def limit(self) -> int | None:
        """The most requests in flight: as configured, else as it reports; None for no limit."""
        return (
            self.config.max_concurrent if self.config.max_concurrent is not None else self.capacity
        )

    @property
    def spoken(self) -> Collection[str]:
        """Names of the dialects in which requests can be sent to it as they are."""
        return spoken(self.config, self.dialects)

    @property
    def cloud(self) -> bool:
        return self.config.provider.cloud

    @property
    def restricted(self) -> bool:
        """Whether it is in a restricted zone; a local kind without a zone counts as restricted."""
        return not self.cloud if self.config.zone is None else self.config.zone != "open"


def spoken(config: BackendConfig, found: frozenset[str] | None) -> Collection[str]:
    """The dialects of a backend: as configured, else as found, else as its kind has them."""
    return config.dialects or (config.provider.dialects if found is None else found)


class Labels(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Real name → label value (see `metrics/labels.py`).

    Attributes:
        retired_models, retired_backends: Label values that are no longer in use.
        models_gone_since, backends_gone_since: Absent names that still have a label, and since when
            they are absent, on the monotonic clock.
        models_over: Requested models that got no label.
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
    """The fleet at one moment, with its configuration.

    Attributes:
        published_at: In Unix seconds.
        grants: What was added to budgets for their present windows.
    """

    revision: int
    published_at: float
    config: Config
    backends: tuple[Backend, ...] = ()
    labels: Labels = Labels()
    grants: tuple[Grant, ...] = ()
