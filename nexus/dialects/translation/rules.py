"""What a translation does with each field of a request: the tables, and the check against them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from nexus.dialects.base import InvalidBody


class Rule(NamedTuple):
    """What becomes of one field.

    Attributes:
        fate: `map` it, `drop` it, or `refuse` the request.
        note: What it becomes, or why it is dropped or refused.
    """

    fate: Literal["map", "drop", "refuse"]
    note: str


Rules = Mapping[str, Rule]
"""Field → its rule. Dots lead into objects. Of a list of objects with types, the type comes before
the field. `*` stands for all types that are not named."""


class Untranslatable(InvalidBody):
    """The request has a field that the backend's protocol has no place for."""


class BadResponse(Exception):
    """The response of a backend has something that the client's protocol has no form for."""


def check_fields(rules: Rules, fields: Iterable[str], prefix: str = "", path: str = "") -> None:
    """Raise `Untranslatable` for a field that is refused, or that has no rule.

    `prefix` is where the object is in the table, `path` where it is in the request.
    """
    for name in fields:
        rule = rules.get(prefix + name)
        if rule is None:
            raise untranslatable(path + name, "it is not known")
        if rule.fate == "refuse":
            raise untranslatable(path + name, rule.note)


def untranslatable(path: str, why: str) -> Untranslatable:
    """The refusal of a field, or of what it holds."""
    message = f"`{path}` cannot be translated for a backend that speaks another API: {why}."
    return Untranslatable(message, param=path)
