"""Follows the gateway's generations in the health process."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from nexus.admin.context import GenerationContext
from nexus.fleet.load_table import HEALTH
from nexus.fleet.records import Snapshot
from nexus.fleet.run_directory import Generation, RunDirectory
from nexus.fleet.slot_lease import SlotLease

log = logging.getLogger("nexus.health")

_LEAVE_AFTER_S = 10.0
"""Until then, the last changes of the generation before can be read, and what uses it can end."""


class GenerationFollower:
    """Holds a slot in the current generation, and moves on when the gateway starts anew.

    Attributes:
        context: The slot and the metrics of the generation that is followed.
        path: The directory of that generation.
    """

    def __init__(self, run_dir: RunDirectory, snapshot: Callable[[], Snapshot | None]) -> None:
        """Join the current generation; make the first one if the gateway has not started yet."""
        self._run_dir = run_dir
        self._snapshot = snapshot
        self._left: GenerationContext | None = None
        self._leave_at = time.monotonic()
        with run_dir.current_or_new() as generation:
            self._join(generation)

    def follow(self) -> bool:
        """Join the current generation if it is a new one, in which all counters start at zero.

        Returns whether it is another one. Raises OSError and `NoFreeSlotError`.
        """
        current = self._run_dir.current()
        if current is None or current.name == self.path.name:
            if time.monotonic() >= self._leave_at:
                self._close_left()
                self._run_dir.delete_unused_generations()
                self._leave_at = math.inf
            return False
        before = self.context
        self._join(current)
        self._close_left()
        self._left, self._leave_at = before, time.monotonic() + _LEAVE_AFTER_S
        log.info("following the gateway's new start", extra={"generation": current.name})
        return True

    def close(self) -> None:
        """Leave the generation."""
        self._close_left()
        self.context.close()

    def _close_left(self) -> None:
        if self._left is not None:
            self._left.close()
            self._left = None

    def _join(self, generation: Generation) -> None:
        self.context = GenerationContext(
            SlotLease.lease(generation, role=HEALTH),
            snapshot=self._snapshot,
            health_process_alive=lambda: True,
        )
        self.path: Path = generation.path
