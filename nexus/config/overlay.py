"""Changes of operators at the running gateway: two layers over the configuration file.

One layer is saved in a file of its own. The layer above it is lost when the gateway stops. Keys
made at run time are a third layer. The configuration file itself is never written.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from nexus.config.access_records import Key
from nexus.config.backend_records import BackendConfig
from nexus.config.budget_records import Grant
from nexus.config.checking import ConfigError, check_table
from nexus.config.consistency import find_conflicts
from nexus.config.records import Config

Origin = Literal["file", "saved", "added"]


class UnknownBackend(Exception):
    """No backend has this name."""


class BackendExists(Exception):
    """A backend of this name exists already."""


class OverlayLayer(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One layer: backends removed, then backends added; and by name whether one is drained."""

    removed: tuple[str, ...] = ()
    added: tuple[BackendConfig, ...] = ()
    drained: dict[str, bool] = {}

    def adds(self, name: str) -> bool:
        return any(backend.name == name for backend in self.added)

    def forgetting(self, name: str) -> OverlayLayer:
        """The layer without this backend, except for its removal."""
        return replace(
            self,
            added=tuple(backend for backend in self.added if backend.name != name),
            drained={other: on for other, on in self.drained.items() if other != name},
        )

    def removing(self, name: str) -> OverlayLayer:
        return replace(self.forgetting(name), removed=tuple(dict.fromkeys((*self.removed, name))))

    def restoring(self, name: str) -> OverlayLayer:
        return replace(self, removed=tuple(other for other in self.removed if other != name))

    def adding(self, backend: BackendConfig) -> OverlayLayer:
        return replace(self, added=(*self.forgetting(backend.name).added, backend))

    def draining(self, name: str, *, on: bool) -> OverlayLayer:
        return replace(self, drained={**self.drained, name: on})


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration file with both layers over it, and what was made at run time: keys, and
    grants of budgets."""

    file: Config
    saved: OverlayLayer = OverlayLayer()
    session: OverlayLayer = OverlayLayer()
    keys: tuple[Key, ...] = ()
    grants: tuple[Grant, ...] = ()

    def config(self) -> Config:
        """The resulting configuration. Raises `ConfigError` if the layers contradict the file."""
        config = replace(
            self.file,
            backends=[backend for backend, _ in self._backends().values()],
            keys=[*self.file.keys, *self.keys],
        )
        if problems := list(find_conflicts(config)):
            raise ConfigError(*problems)
        return config

    def origin(self, name: str) -> Origin:
        return self._backends()[name][1]

    def is_drained(self, name: str) -> bool:
        return {**self.saved.drained, **self.session.drained}.get(name, False)

    def has(self, name: str) -> bool:
        return name in self._backends()

    def add(self, backend: BackendConfig, *, save: bool) -> Overlay:
        """Add a backend. Raises `ConfigError` if it contradicts the others."""
        session, saved, name = self.session.forgetting(backend.name), self.saved, backend.name
        if save:
            if name in session.removed:  # saving the replacement must also save the removal
                saved, session = saved.removing(name), session.restoring(name)
            saved = saved.adding(backend)
        else:
            session = session.adding(backend)
        layered = replace(self, saved=saved, session=session)
        layered.config()
        return layered

    def remove(self, name: str, *, save: bool) -> Overlay:
        """Remove a backend."""
        session, saved = self.session.forgetting(name), self.saved
        if save:
            saved = saved.forgetting(name)
        in_file = (
            any(backend.name == name for backend in self.file.backends)
            and name not in saved.removed
        )
        if in_file and save:
            saved = saved.removing(name)
        elif in_file or saved.adds(name):
            session = session.removing(name)
        return replace(self, saved=saved, session=session)

    def drain(self, name: str, *, on: bool, save: bool) -> Overlay:
        """Drain a backend, or let it get requests again."""
        if save:
            drained = {
                other: value for other, value in self.session.drained.items() if other != name
            }
            return replace(
                self,
                saved=self.saved.draining(name, on=on),
                session=replace(self.session, drained=drained),
            )
        return replace(self, session=self.session.draining(name, on=on))

    def with_key(self, key: Key) -> Overlay:
        """Add a key made at run time, or replace the one with its id. Raises `ConfigError`."""
        position = {one.id: n for n, one in enumerate(self.keys)}.get(key.id, len(self.keys))
        keys = (*self.keys[:position], key, *self.keys[position + 1 :])
        layered = replace(self, keys=keys)
        layered.config()
        return layered

    def without_key(self, id_: str) -> Overlay:
        return replace(self, keys=tuple(key for key in self.keys if key.id != id_))

    def with_grant(self, grant: Grant, *, now: float) -> Overlay:
        """Set what was granted for a window. Grants of windows that have ended are dropped."""
        window = (grant.budget, grant.subject, grant.start)
        others = (
            one
            for one in self.grants
            if one.end > now and (one.budget, one.subject, one.start) != window
        )
        return replace(self, grants=(*others, grant))

    def _backends(self) -> dict[str, tuple[BackendConfig, Origin]]:
        backends: dict[str, tuple[BackendConfig, Origin]] = {
            backend.name: (backend, "file") for backend in self.file.backends
        }
        layers: tuple[tuple[OverlayLayer, Origin], ...] = (
            (self.saved, "saved"),
            (self.session, "added"),
        )
        for layer, origin in layers:
            for name in layer.removed:
                backends.pop(name, None)
            for backend in layer.added:
                # If the operator has since added the name to the file, the file takes precedence.
                backends.setdefault(backend.name, (backend, origin))
        return backends


def parse_key(data: dict[str, Any]) -> Key:
    """A key from a table such as `[[keys]]`. Raises `ConfigError` with every problem."""
    return msgspec.convert(check_table(data, Key, source="the request", path=("keys",)), Key)


def parse_backend(data: Any) -> BackendConfig:
    """A backend from a table such as `[[backends]]`. Raises `ConfigError` with every problem."""
    return msgspec.convert(
        check_table(data, BackendConfig, source="the request", path=("backends",)), BackendConfig
    )
