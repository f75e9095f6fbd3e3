"""Changes that operators make to the backends of the running gateway."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from nexus.admin.access import admin_token
from nexus.admin.responses import BackendState
from nexus.config import ConfigError
from nexus.config.addresses import listen_address
from nexus.config.overlay import BackendExists, Overlay, UnknownBackend, parse_backend
from nexus.fleet.run_directory import RunDirectory
from nexus.health.backend_states import backend_states
from nexus.health.change_files import ChangeFiles
from nexus.health.detection import detect_kind
from nexus.health.monitor import FleetMonitor
from nexus.health.publisher import Publisher
from nexus.runtime.files import PRIVATE, write_atomically
from nexus.runtime.text import remember_secret

log = logging.getLogger("nexus.health")


class HealthBackendAdmin:
    """Implements `BackendAdmin`.

    Attributes:
        run_dir_token: The token for those who may read the run directory.
    """

    def __init__(
        self,
        run_dir: RunDirectory,
        *,
        monitor: FleetMonitor,
        publisher: Publisher,
        changes: ChangeFiles,
        environ: Mapping[str, str],
    ) -> None:
        self._run_dir = run_dir
        self._monitor = monitor
        self._publisher = publisher
        self._changes = changes
        self._environ = environ
        self.run_dir_token = secrets.token_urlsafe(32)
        remember_secret(self.run_dir_token)
        write_atomically(run_dir.path / "admin.token", self.run_dir_token.encode(), mode=PRIVATE)

    def own_names(self) -> list[str]:
        """The names by which the operations port is reached."""
        config = self._monitor.fleet.config
        listen = config.health_check.listen
        return [*config.admin.hosts, *([] if listen == "off" else [listen_address(listen)[0]])]

    def admin_token(self) -> str:
        return admin_token(self._monitor.fleet.config.admin, self._environ) or self.run_dir_token

    def backends(self) -> list[BackendState]:
        snapshot = self._publisher.snapshot
        slot_lease = self._publisher.generation.context.slot_lease
        return backend_states(snapshot, slot_lease) if snapshot else []

    def add_backend(self, data: dict[str, Any], *, save: bool) -> BackendState:
        backend = parse_backend(data)
        overlay = self._monitor.fleet.overlay
        _check_key_name(overlay, backend.api_key_env)
        if data.get("type") is None and not overlay.has(backend.name):
            timeout_s = self._monitor.fleet.config.health_check.timeout_seconds
            kind = detect_kind(backend, self._environ, timeout_s=timeout_s)
            backend = replace(backend, type=kind)
            # Other changes may have been made while the backend was probed.
            overlay = self._monitor.fleet.overlay
        if overlay.has(backend.name):
            raise BackendExists(backend.name)
        self._apply(overlay.add(backend, save=save), f"backend {backend.name} added", saved=save)
        self._monitor.probe_soon(backend.name)
        return self._state(backend.name)

    def remove_backend(self, name: str, *, save: bool) -> None:
        overlay = self._overlay_with(name).remove(name, save=save)
        self._apply(overlay, f"backend {name} removed", saved=save)

    def drain_backend(self, name: str, *, on: bool, save: bool) -> BackendState:
        overlay = self._overlay_with(name).drain(name, on=on, save=save)
        self._apply(
            overlay, f"backend {name} {'drained' if on else 'takes requests again'}", saved=save
        )
        return self._state(name)

    def _overlay_with(self, name: str) -> Overlay:
        overlay = self._monitor.fleet.overlay
        if not overlay.has(name):
            raise UnknownBackend(name)
        return overlay

    def _state(self, name: str) -> BackendState:
        return next(backend for backend in self.backends() if backend.name == name)

    def _apply(self, overlay: Overlay, event: str, *, saved: bool) -> None:
        """Write and use this configuration. Raises `ConfigError`; then nothing has changed."""
        fleet = self._monitor.new_fleet(overlay)
        self._changes.write(self._monitor.fleet.overlay, overlay)
        if not self._monitor.adopt(fleet):
            raise ConfigError(
                f"The fleet cannot be written into {self._run_dir.path}; the log says why."
            )
        log.info(event, extra={"saved": saved, "backends": len(fleet.backends)})


def _check_key_name(overlay: Overlay, name: str | None) -> None:
    """Raise `ConfigError` for a secret that the file does not allow to backends."""
    used = {backend.api_key_env for backend in overlay.file.backends}
    if name is not None and name not in used and name not in overlay.file.admin.api_key_envs:
        raise ConfigError(
            f"[backends] api_key_env = {name!r} is not allowed here: a backend that is added to "
            "the running gateway takes a name that the file uses already, or that "
            "[admin] api_key_envs lists."
        )
