"""The files that keep what operators changed: until the gateway's next start, or for good."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from nexus.config import Config, ConfigError
from nexus.config.access_records import Key
from nexus.config.budget_records import Grant
from nexus.config.overlay import Overlay, OverlayLayer
from nexus.fleet.state_directory import StateDirectory
from nexus.runtime.files import write_atomically

log = logging.getLogger("nexus.health")

_SESSION = "changes.json"
_KEYS = "keys.json"
_GRANTS = "grants.json"


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `keys.json`: keys made at run time, by digest."""

    keys: tuple[Key, ...] = ()


class _GrantFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `grants.json`: what was granted for windows of budgets."""

    grants: tuple[Grant, ...] = ()


_StateFile = TypeVar("_StateFile", _KeyFile, _GrantFile)


class ChangeFiles:
    """Reads and writes both layers of changes. Only the health process does.

    Attributes:
        session_dir: Directory of the generation, which keeps changes that are not saved.
    """

    def __init__(
        self,
        config_file: Path | None,
        environ: Mapping[str, str],
        *,
        session_dir: Path,
        state_dir: StateDirectory,
    ) -> None:
        self._saved_file = config_file.with_suffix(".saved.json") if config_file else None
        if named := environ.get("NEXUS_SAVED"):
            self._saved_file = Path(named)
        self.session_dir = session_dir
        self._state_dir = state_dir

    def overlay(self, config: Config) -> Overlay:
        """The file with both layers, keys and grants. Raises `ConfigError` if one is unusable."""
        keys = self._read_state(_KEYS, _KeyFile).keys
        own = {key.id for key in keys}
        if twice := [key.id for key in config.keys if key.id in own]:
            path = self._state_dir.path / _KEYS
            raise ConfigError(
                f'[[keys]] id = "{twice[0]}" is in the configuration file and in {path}; '
                "remove one of them."
            )
        return Overlay(
            file=config,
            saved=self._read_saved(),
            session=self._read_session(),
            keys=keys,
            grants=self._read_state(_GRANTS, _GrantFile).grants,
        )

    def claim(self) -> None:
        """Lock the directory of keys and grants. Raises `ConfigError`.

        This may wait for another gateway that ends, while others change the fleet. So it comes
        first, and `write` does not wait.
        """
        try:
            self._state_dir.claim()
        except OSError as error:
            raise self._not_kept("keys and grants", error) from error

    def write(self, before: Overlay, after: Overlay) -> None:
        """Keep what changed. Raises `ConfigError` if it cannot be kept; then nothing is."""
        if after.saved != before.saved:
            if self._saved_file is None:
                raise ConfigError(
                    "There is no configuration file beside which this could be saved; "
                    "name a file in $NEXUS_SAVED."
                )
            _write(self._saved_file, after.saved)
        if after.session != before.session:
            _write(self.session_dir / _SESSION, after.session)
        if after.keys != before.keys:
            self._write_state(_KEYS, _KeyFile(before.keys), _KeyFile(after.keys))
        if after.grants != before.grants:
            self._write_state(_GRANTS, _GrantFile(before.grants), _GrantFile(after.grants))

    def _read_state(self, name: str, kind: type[_StateFile]) -> _StateFile:
        try:
            content = self._state_dir.read(name)
            return msgspec.json.decode(content, type=kind) if content is not None else kind()
        except (OSError, msgspec.DecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            file, what = self._state_dir.path / name, name.removesuffix(".json")
            raise ConfigError(
                f"{file}: the {what} cannot be read ({why}); correct that, or move it away."
            ) from error

    def _write_state(self, name: str, before: _StateFile, after: _StateFile) -> None:
        content = msgspec.json.format(msgspec.json.encode(after), indent=2) + b"\n"
        try:
            path = self._state_dir.path / name
            if self._read_state(name, type(before)) != before:
                raise ConfigError(
                    f"{path} was changed meanwhile, by another gateway or by hand; "
                    "run `nexus reload`, then try again."
                )
            self._state_dir.write(name, content)
        except OSError as error:
            raise self._not_kept(name.removesuffix(".json"), error) from error

    def _not_kept(self, what: str, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self._state_dir.path}: {what} cannot be kept there ({error.strerror}); "
            "name another directory in [server] state_dir."
        )

    def _read_saved(self) -> OverlayLayer:
        try:
            return _read(self._saved_file) if self._saved_file else OverlayLayer()
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(
                f"{self._saved_file}: the saved changes cannot be read ({error}); "
                "correct the file, or move it away."
            ) from error

    def _read_session(self) -> OverlayLayer:
        file = self.session_dir / _SESSION
        try:
            return _read(file)
        except (OSError, msgspec.DecodeError) as error:
            log.error(
                "changes made at the running gateway are lost",
                extra={"file": file, "why": error},
            )
            return OverlayLayer()


def _read(file: Path) -> OverlayLayer:
    try:
        return msgspec.json.decode(file.read_bytes(), type=OverlayLayer)
    except FileNotFoundError:
        return OverlayLayer()


def _write(file: Path, layer: OverlayLayer) -> None:
    content = msgspec.json.format(msgspec.json.encode(layer), indent=2) + b"\n"
    try:
        write_atomically(file, content)
    except OSError as error:
        raise ConfigError(
            f"{file}: the change cannot be kept there ({error.strerror}); "
            "name another file in $NEXUS_SAVED."
        ) from error
