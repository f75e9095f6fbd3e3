"""Where what operators changed at the running gateway is kept: for its life in the generation, or saved for good."""

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
    """Reads and writes both layers. One process does, the health process."""

    def __init__(self, config_file: Path | None, environ: Mapping[str, str]) -> None:
        named = environ.get("NEXUS_SAVED")
        self.saved_at = (
            Path(named)
            if named
            else config_file.with_suffix(".saved.json")
            if config_file
            else None
        )
        self.session_at: Path | None = None

    def follow(self, generation: Path) -> None:
        """Keep what is not saved in this generation: it ends with the gateway's run."""
        self.session_at = generation / _SESSION

    def over(self, config: Config) -> Overlay:
        """The configuration file with both layers. Raises `ConfigError` where the saved one cannot be used."""
        return Overlay(file=config, saved=self._saved(), session=self._session())

    def _saved(self) -> OverlayLayer:
        if self.saved_at is None:
            return OverlayLayer()
        try:
            return msgspec.json.decode(self.saved_at.read_bytes(), type=OverlayLayer)
        except FileNotFoundError:
            return OverlayLayer()
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(
                [
                    f"{self.saved_at}: the saved changes cannot be read ({error}); mend the file, or move it away."
                ]
            ) from error

    def _session(self) -> OverlayLayer:
        assert self.session_at is not None
        try:
            return msgspec.json.decode(self.session_at.read_bytes(), type=OverlayLayer)
        except FileNotFoundError:
            return OverlayLayer()
        except (OSError, msgspec.DecodeError) as error:
            log.error(
                "changes made at the running gateway are lost",
                extra={"file": self.session_at, "why": error},
            )
            return OverlayLayer()

    def write(self, before: Overlay, after: Overlay) -> None:
        """Keep what changed. Raises `ConfigError` where it cannot be kept; then nothing is."""
        if after.saved != before.saved:
            if self.saved_at is None:
                raise ConfigError(
                    [
                        "There is no configuration file beside which this could be saved; name a file in $NEXUS_SAVED."
                    ]
                )
            self._replace(self.saved_at, after.saved)
        if after.session != before.session:
            assert self.session_at is not None
            self._replace(self.session_at, after.session)

    def _replace(self, file: Path, changes: OverlayLayer) -> None:
        content = msgspec.json.format(msgspec.json.encode(changes), indent=2) + b"\n"
        try:
            write_atomically(file, content)
        except OSError as error:
            raise ConfigError(
                [
                    f"{file}: the change cannot be kept there ({error.strerror}); name a file that can in $NEXUS_SAVED."
                ]
            ) from error
