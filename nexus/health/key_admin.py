"""Changes that operators make to the keys of clients while the gateway runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import asdict, replace

from nexus.access.callers import NONE, Caller, callers_of
from nexus.access.keys import digest, new_key
from nexus.admin.keys import KeyExists, KeyInFile, KeyList, KeyState, MadeKey, UnknownKey
from nexus.config import Config, ConfigError
from nexus.config.access_records import Key
from nexus.config.limit_records import OwnLimits
from nexus.config.overlay import Overlay, parse_key
from nexus.health.change_files import ChangeFiles
from nexus.health.monitor import FleetMonitor

log = logging.getLogger("nexus.health")

_NEVER_CHANGED = ("id", "sha256", "grace_until")


class HealthKeyAdmin:
    """Implements `KeyAdmin`."""

    def __init__(self, monitor: FleetMonitor, changes: ChangeFiles) -> None:
        self._monitor = monitor
        self._changes = changes

    def keys(self) -> KeyList:
        config = self._monitor.fleet.config
        callers = _callers(config)
        return KeyList(
            mode=config.auth.mode, keys=[self._state(key, callers[key.id]) for key in config.keys]
        )

    def key(self, id_: str) -> KeyState:
        for state in self.keys().keys:
            if state.id == id_:
                return state
        raise UnknownKey(id_)

    def add_key(self, data: dict[str, Any]) -> MadeKey:
        secret = None
        if (digests := data.get("sha256")) is None:
            if data.get("id") is not None:
                raise ConfigError("A key that is made here gets an id here; leave id out.")
            id_, secret = new_key()
            data = {**data, "id": id_, "sha256": [digest(secret)]}
        elif data.get("id") is None and isinstance(digests, list) and digests:
            data = {**data, "id": f"imported-{str(digests[0])[:12]}"}
        key = parse_key(data)
        if any(key.id == other.id for other in self._monitor.fleet.config.keys):
            raise KeyExists(key.id)
        self._apply(lambda overlay: overlay.with_key(key), f"key {key.id} added")
        return self._made(key.id, secret)

    def change_key(self, id_: str, data: dict[str, Any]) -> KeyState:
        if fixed := [field for field in data if field in _NEVER_CHANGED]:
            raise ConfigError(f"{fixed[0]} of a key cannot be changed; rotate it, or make one.")
        before = msgspec.to_builtins(self._own(id_))
        merged = _merged(before, data, Key)
        if isinstance(limits := data.get("limits"), dict):
            merged["limits"] = _merged(before["limits"] or {}, limits, OwnLimits) or None
        key = parse_key(merged)
        self._apply(lambda overlay: overlay.with_key(key), f"key {id_} changed")
        return self.key(id_)

    def rotate_key(self, id_: str, *, grace_s: float) -> MadeKey:
        key = self._own(id_)
        secret = new_key(id_)[1]
        if grace_s:
            end = datetime.now(UTC) + timedelta(seconds=grace_s)
            key = replace(key, sha256=[key.sha256[-1], digest(secret)], grace_until=end)
        else:
            key = replace(key, sha256=[digest(secret)], grace_until=None)
        self._apply(lambda overlay: overlay.with_key(key), f"key {id_} rotated")
        return self._made(id_, secret)

    def remove_key(self, id_: str) -> None:
        self._own(id_)
        self._apply(lambda overlay: overlay.without_key(id_), f"key {id_} removed")

    def _own(self, id_: str) -> Key:
        """A key that was made at run time."""
        for key in self._monitor.fleet.overlay.keys:
            if key.id == id_:
                return key
        if any(key.id == id_ for key in self._monitor.fleet.config.keys):
            raise KeyInFile(id_)
        raise UnknownKey(id_)

    def _made(self, id_: str, secret: str | None) -> MadeKey:
        return MadeKey(key=secret, **asdict(self.key(id_)))

    def _state(self, key: Key, caller: Caller) -> KeyState:
        added = any(key.id == own.id for own in self._monitor.fleet.overlay.keys)
        return KeyState(
            id=key.id,
            name=key.name,
            team=None if caller.team == NONE else caller.team,
            state=caller.state(time.time()),
            origin="added" if added else "file",
            expires=key.expires,
            grace_until=key.grace_until,
            models=[list(globs) for globs in caller.models],
            endpoints=[sorted(names) for names in caller.endpoints],
            priority=key.priority,
            limits=key.limits,
        )

    def _apply(self, change: Callable[[Overlay], Overlay], event: str) -> None:
        """Keep the keys and use them. Raises `ConfigError`; then nothing has changed."""
        self._changes.claim()
        overlay = change(self._monitor.fleet.overlay)
        fleet = self._monitor.new_fleet(overlay)
        self._changes.write(self._monitor.fleet.overlay, overlay)
        if not self._monitor.adopt(fleet):
            raise ConfigError("The keys are kept, but not published yet; the log says why.")
        log.info(event)


def _merged(
    fields: dict[str, Any], changes: dict[str, Any], record: type[msgspec.Struct]
) -> dict[str, Any]:
    """The fields of a record with their changes, as RFC 7396 merges them: null removes one."""
    merged = fields | changes
    known = record.__struct_fields__
    return {name: value for name, value in merged.items() if value is not None or name not in known}


def _callers(config: Config) -> dict[str, Caller]:
    """The callers by id, even if `[auth]` is off."""
    auth = replace(config.auth, mode="keys")
    callers = callers_of(replace(config, auth=auth), key_labels={}, team_labels={})
    assert callers is not None
    return dict(callers.by_key)
