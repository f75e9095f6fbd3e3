"""The models that clients can request, as `/v1/models` lists them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from nexus.access.callers import Caller
from nexus.proxy.fleet_view import View
from nexus.routing.candidate import Candidate

_CAPABILITIES = ("vision", "tools", "json_mode")


def list_models(view: View, caller: Caller | None = None) -> list[dict[str, Any]]:
    """One entry for each model on healthy backends that the caller may use, then one for each
    alias of those."""
    names = dict.fromkeys(view.table.healthy)
    for candidates in view.table.healthy.values():
        names |= dict.fromkeys(
            alias for candidate in candidates for alias in candidate.model.aliases
        )
    names |= dict.fromkeys(view.table.routing.aliases)
    return [entry for name in names if (entry := find_model(view, name, caller)) is not None]


def find_model(view: View, name: str, caller: Caller | None = None) -> dict[str, Any] | None:
    """The entry of a name: listed, an alias, equivalent, or covered by a pattern. None if there is
    no such model, or the caller may not use it."""
    if caller is not None and not caller.may_use_model(name):
        return None
    model = view.table.resolve(name)
    candidates = [
        candidate for candidate in view.table.candidates_for(model) if candidate.backend.usable
    ]
    return _entry(name, model, candidates) if candidates else None


def in_anthropic_form(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry in Anthropic's form, without the gateway's own fields."""
    created = datetime.fromtimestamp(entry["created"], UTC)
    return {
        "type": "model",
        "id": entry["id"],
        "display_name": entry["id"],
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def anthropic_list(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole list in Anthropic's form, as its only page."""
    data = [in_anthropic_form(entry) for entry in entries]
    return {
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def _entry(name: str, model: str, candidates: Sequence[Candidate]) -> dict[str, Any]:
    first = candidates[0].backend
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": int(first.since),
        "owned_by": first.name,
        "backends": [candidate.backend.name for candidate in candidates],
    }
    if name != model:
        entry["alias_of"] = model
    if (length := max((candidate.model.context_length or 0) for candidate in candidates)) > 0:
        entry["context_length"] = length
    able = {
        field: _known(getattr(candidate.model, field) for candidate in candidates)
        for field in _CAPABILITIES
    }
    if known := {field: value for field, value in able.items() if value is not None}:
        entry["capabilities"] = known
    if all(candidate.model.tasks for candidate in candidates):
        entry["tasks"] = list(
            dict.fromkeys(task for candidate in candidates for task in candidate.model.tasks)
        )
    return entry


def _known(values: Iterable[bool | None]) -> bool | None:
    """True if one backend can, False if each is known not to, else None."""
    known = set(values)
    return True if True in known else None if None in known else False
