"""A model on a backend, and what it is known to lack."""

from __future__ import annotations

from dataclasses import dataclass

from nexus.fleet.records import Backend, Model
from nexus.routing.needs import Needs
from nexus.routing.policies import Constraints

CAPABILITIES = {"vision": "images", "tools": "tools", "json_mode": "JSON mode"}
"""Fields of `Model` and `Needs` that say what a model can do → what a client calls it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model on a backend."""

    backend: Backend
    model: Model

    def lacks(self, needs: Needs) -> list[str]:
        """What the request asks for and the model is known not to do."""
        model = self.model
        lacking = [
            word
            for field, word in CAPABILITIES.items()
            if getattr(model, field) is False and getattr(needs, field)
        ]
        if model.tasks and needs.task and needs.task not in model.tasks:
            lacking.append(needs.task)
        return lacking

    def translation(self, needs: Needs) -> str | None:
        """The translation that such requests go through; None if they need none, or have none."""
        allowed, spoken = self.backend.config.translate, self.backend.spoken
        if not allowed or needs.dialect in spoken:
            return None
        possible = (name for other, name in needs.translations if other in spoken)
        return next((name for name in possible if allowed is True or name in allowed), None)

    def understands(self, needs: Needs, *, native: bool = False) -> bool:
        """Whether its backend speaks the API of such requests, or, unless `native`, can get them
        translated."""
        if needs.dialect in self.backend.spoken:
            return True
        return not native and self.translation(needs) is not None

    def unsuitable(
        self, needs: Needs, constraints: Constraints, *, native: bool = False
    ) -> str | None:
        """Why it cannot serve such requests, whatever the moment; None if it can.

        With `native`, they have no translation.
        """
        backend = self.backend
        if backend.status != "healthy":
            return backend.status
        if backend.draining:
            return "draining"
        if not self.understands(needs, native=native):
            return "dialect_not_spoken"
        if self.lacks(needs):
            return "capability_mismatch"
        return constraints.rejects(backend)
