"""The files that keep what operators changed: until the gateway's next start, or for good."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from nexus.config import Config, ConfigError
from nexus.config.changes import Overlay, OverlayLayer
from nexus.runtime.files import write_atomically

log = logging.getLogger("nexus.health")

_SESSION = "changes.json"


class ChangeFiles:
    """Reads and writes both layers of changes. Only the health process does.

    Attributes:
        session_dir: Directory of the generation, which keeps changes that are not saved.
    """

    def __init__(
        self, config_file: Path | None, environ: Mapping[str, str], *, session_dir: Path
    ) -> None:
        self._saved_file = config_file.with_suffix(".saved.json") if config_file else None
        if named := environ.get("NEXUS_SAVED"):
            self._saved_file = Path(named)
        self.session_dir = session_dir

    def overlay(self, config: Config) -> Overlay:
        """The file with both layers. Raises `ConfigError` for unusable saved changes."""
        return Overlay(file=config, saved=self._read_saved(), session=self._read_session())

    def write(self, before: Overlay, after: Overlay) -> None:
        """Keep what changed. Raises `ConfigError` if it cannot be kept; then nothing is."""
        if after.saved != before.saved:
            if self._saved_file is None:
                problem = (
                    "There is no configuration file beside which this could be saved; "
                    "name a file in $NEXUS_SAVED."
                )
                raise ConfigError([problem])
            _write(self._saved_file, after.saved)
        if after.session != before.session:
            _write(self.session_dir / _SESSION, after.session)

    def _read_saved(self) -> OverlayLayer:
        try:
            return _read(self._saved_file) if self._saved_file else OverlayLayer()
        except (OSError, msgspec.DecodeError) as error:
            problem = (
                f"{self._saved_file}: the saved changes cannot be read ({error}); "
                "correct the file, or move it away."
            )
            raise ConfigError([problem]) from error

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
        problem = (
            f"{file}: the change cannot be kept there ({error.strerror}); "
            "name another file in $NEXUS_SAVED."
        )
        raise ConfigError([problem]) from error
