"""What a translation does with each field of a request: the tables, and the check against them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from nexus.dialects.base import InvalidBody
from nexus.dialects.json_body import Raw

NULL, EMPTY = Raw(b"null"), Raw(b'""')
"""Raw JSON equals no bytes, only raw JSON."""


class Rule(NamedTuple):
    """What becomes of one field.

    Attributes:
        fate: `map` it, `drop` it, or `refuse` the request.
        note: What it becomes, or why it is dropped or refused.
        stored: It is refused because it needs something that a backend has stored.
    """

    fate: Literal["map", "drop", "refuse"]
    note: str
    stored: bool = False


DECIDES_FORM = Rule("map", "decides the form")
Rules = Mapping[str, Rule]
"""Field → its rule. Dots lead into objects. Of a list of objects with types, the type comes before
the field. `*` stands for all types that are not named."""


class Untranslatable(InvalidBody):
    """The request has a field that the backend's protocol has no place for.

    Attributes:
        code: The code of the fault.
    """

    code = "not_translatable"


class NotStored(Untranslatable):
    """The request needs what a backend of its own protocol would store."""

    code = "response_not_stored"


class BadResponse(Exception):
    """The response of a backend has something that the client's protocol has no form for."""


class FieldCheck:
    """Checks the fields of one request against a table, and remembers which are dropped."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._dropped: dict[str, None] = {}

    @property
    def dropped(self) -> tuple[str, ...]:
        """The fields that are dropped, as the table names them."""
        return tuple(self._dropped)

    def drop(self, name: str) -> None:
        """A field is dropped that the table maps, because this backend does not take it."""
        self._dropped[name] = None

    def fields(self, fields: Mapping[str, Raw], prefix: str = "", path: str = "") -> None:
        """Raise `Untranslatable` for a field that is refused, or that has no rule.

        `prefix` is where the object is in the table, `path` where it is in the request.
        """
        for name, raw in fields.items():
            if raw == NULL:
                continue
            rule = self._rules.get(prefix + name)
            if rule is None:
                raise untranslatable(path + name, "it is not known")
            if rule.fate == "drop":
                self.drop(prefix + name)
            elif rule.fate == "refuse":
                raise _refusal(path + name, rule)

    def typed(self, section: str, kind: str, fields: Mapping[str, Raw], path: str) -> bool:
        """Check an object with a type, and its fields; returns whether it is mapped."""
        name = f"{section}.{kind}"
        rule = self._rules.get(name)
        if rule is not None and rule.fate == "drop":
            self.drop(name)
            return False
        if f"{name}.type" not in self._rules:
            rule = rule or self._rules[f"{section}.*"]
            raise _refusal(path, rule._replace(note=f"{rule.note} ({kind})"))
        self.fields(fields, f"{name}.", f"{path}.")
        return True


def untranslatable(path: str, why: str) -> Untranslatable:
    """The refusal of a field, or of what it holds."""
    return _refusal(path, Rule("refuse", why))


def _refusal(path: str, rule: Rule) -> Untranslatable:
    message = f"`{path}` cannot be translated for a backend that speaks another API: {rule.note}."
    return (NotStored if rule.stored else Untranslatable)(message, param=path)
