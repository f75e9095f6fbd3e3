"""The models that clients can ask for, as `/v1/models` lists them: only what is known of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nexus.proxy.fleet_view import View
from nexus.routing.table import Candidate

_CAPABILITIES = ("vision", "tools", "json_mode")


def list_models(view: View) -> list[dict[str, Any]]:
    """One entry for each model on healthy backends, then one for each alias of those."""
    names = dict.fromkeys(view.table.healthy)
    for offers in view.table.healthy.values():
        names |= dict.fromkeys(alias for offer in offers for alias in offer.model.aliases)
    names |= dict.fromkeys(view.table.routing.aliases)
    return [entry for name in names if (entry := find_model(view, name)) is not None]


def find_model(view: View, name: str) -> dict[str, Any] | None:
    """The entry of one name: a listed one, an alias, an equivalent name, or one that a pattern covers."""
    model = view.table.resolve(name)
    offers = [offer for offer in view.table.offers_of(model) if offer.backend.usable]
    return _entry(name, model, offers) if offers else None


def _entry(name: str, model: str, offers: Sequence[Candidate]) -> dict[str, Any]:
    first = offers[0].backend
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": int(first.since),
        "owned_by": first.name,
        "backends": [offer.backend.name for offer in offers],
    }
    if name != model:
        entry["alias_of"] = model
    if (length := max((offer.model.context_length or 0) for offer in offers)) > 0:
        entry["context_length"] = length
    able = {
        field: _known(getattr(offer.model, field) for offer in offers) for field in _CAPABILITIES
    }
    if known := {field: value for field, value in able.items() if value is not None}:
        entry["capabilities"] = known
    if all(offer.model.tasks for offer in offers):
        entry["tasks"] = list(dict.fromkeys(task for offer in offers for task in offer.model.tasks))
    return entry


def _known(answers: Iterable[bool | None]) -> bool | None:
    """True if a backend can, False if each is known not to."""
    said = set(answers)
    return True if True in said else None if None in said else False
