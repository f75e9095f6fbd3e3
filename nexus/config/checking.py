"""Checks tables of the configuration against their records, and describes what a record allows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect as shapes

from nexus.config.fields import hints_of
from nexus.runtime.text import suggest


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has one sentence for each problem."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def check_table(
    data: Any,
    record: type[msgspec.Struct],
    *,
    source: str,
    path: tuple[str, ...],
    origins: Mapping[str, str] | None = None,
    overridden: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The table, checked against its record. Raises `ConfigError` with every problem.

    `origins` says by dotted key which values do not come from `source`. `overridden` has values of
    `source` that others replaced; they are checked, too.
    """
    checker = _TableChecker(source=source, origins={})
    if overridden:
        checker.section(overridden, record, path)
    checker.origins = origins or {}
    checked = checker.section(data, record, path)
    if checker.problems:
        raise ConfigError(*checker.problems)
    return checked


class _TableChecker:
    """Walks a table beside its record, so that a message can name what the record allows."""

    def __init__(self, *, source: str, origins: Mapping[str, str]) -> None:
        self.source = source
        self.origins = origins
        self.problems: list[str] = []

    def section(
        self, data: Any, record: type[msgspec.Struct], path: tuple[str, ...]
    ) -> dict[str, Any]:
        if not isinstance(data, dict):
            self._wrong(path, data, "a table")
            return {}
        hints = hints_of(record)
        result = {}
        for key, value in data.items():
            if key in hints:
                result[key] = self.value(value, hints[key], (*path, key))
            else:
                self._unknown(key, list(hints), path)
        for name in _required(record):
            if name not in data:
                self.problems.append(
                    f"{self.source}: {_table(path)} lacks {name}, which has no default."
                )
        return result

    def value(self, value: Any, hint: Any, path: tuple[str, ...]) -> Any:
        shape = _unwrap(shapes.type_info(hint))
        options = (
            [_unwrap(option) for option in shape.types]
            if isinstance(shape, shapes.UnionType)
            else [shape]
        )
        if value is None and any(isinstance(option, shapes.NoneType) for option in options):
            return None  # in JSON only
        for option in options:
            if isinstance(option, shapes.StructType):
                return self.section(value, option.cls, path)
            if isinstance(option, shapes.ListType) and isinstance(
                _unwrap(option.item_type), shapes.StructType
            ):
                record = _unwrap(option.item_type).cls
                if isinstance(value, list):
                    return [
                        self.section(item, record, (*path[:-1], f"{path[-1]}[{n}]"))
                        for n, item in enumerate(value)
                    ]
                if isinstance(value, dict) and any(
                    isinstance(other, shapes.DictType) for other in options
                ):
                    return {
                        name: self.section(item, record, (*path, name))
                        for name, item in value.items()
                    }
                self._wrong(path, value, f"a list of tables, written [[{'.'.join(path)}]]")
                return []
        value = _normalize_case(value, options)
        try:
            text = self.origins.get(".".join(path), "").startswith("environment")
            return msgspec.convert(value, hint, strict=not text)
        except msgspec.ValidationError:
            allowed = describe(hint)
            if isinstance(value, dict) and any(isinstance(one, dict) for one in value.values()):
                allowed += "; write a name with dots in quotes"
            self._wrong(path, value, allowed)
            return value

    def _wrong(self, path: tuple[str, ...], value: Any, allowed: str) -> None:
        origin = self.origins.get(".".join(path), self.source)
        shown = "true" if value is True else "false" if value is False else repr(value)
        key = f"{_table(path[:-1])} {path[-1]}" if path[1:] else path[0]
        self.problems.append(f"{origin}: {key} = {shown} is not allowed; it takes {allowed}.")

    def _unknown(self, key: str, known: list[str], path: tuple[str, ...]) -> None:
        hint = suggest(key, known) or f"known are {', '.join(sorted(known))}."
        self.problems.append(f"{self.source}: {_table(path)} has no key {key}; {hint}")


@cache
def _required(record: type[msgspec.Struct]) -> tuple[str, ...]:
    """The settings of a record that have no default, by their names in the file."""
    return tuple(one.encode_name for one in msgspec.structs.fields(record) if one.required)


def _normalize_case(value: Any, options: list[Any]) -> Any:
    """The value, with words of a fixed set in lower case: `Restricted` becomes `restricted`."""
    for option in options:
        if (
            isinstance(option, shapes.LiteralType)
            and isinstance(value, str)
            and value.lower() in option.values
        ):
            return value.lower()
        if isinstance(option, shapes.DictType) and isinstance(value, dict):
            return {
                key: _normalize_case(item, [_unwrap(option.value_type)])
                for key, item in value.items()
            }
        if isinstance(option, shapes.ListType) and isinstance(value, list):
            return [_normalize_case(item, [_unwrap(option.item_type)]) for item in value]
    return value


def describe(hint: Any) -> str:
    """What a setting accepts, in words: `a whole number from 1 to 65535`."""
    return _describe(shapes.type_info(hint))


def _describe(shape: Any) -> str:
    match shape:
        case shapes.Metadata():
            return (shape.extra_json_schema or {}).get("title") or _describe(shape.type)
        case shapes.UnionType():
            return " or ".join(
                _describe(option)
                for option in shape.types
                if not isinstance(option, shapes.NoneType)
            )
        case shapes.BoolType():
            return "true or false"
        case shapes.IntType() | shapes.FloatType():
            noun = "a whole number" if isinstance(shape, shapes.IntType) else "a number"
            low = (
                f" from {shape.ge}"
                if shape.ge is not None
                else f" above {shape.gt}"
                if shape.gt is not None
                else ""
            )
            return noun + low + (f" to {shape.le}" if shape.le is not None else "")
        case shapes.LiteralType():
            words = ", ".join(f'"{value}"' for value in shape.values)
            return f"one of {words}" if len(shape.values) > 1 else words
        case shapes.DateType():
            return "a day such as 2027-06-30"
        case shapes.DateTimeType():
            return "a time such as 2027-06-30T12:00:00Z"
        case shapes.StrType():
            if shape.max_length:
                return f"a text of {shape.min_length or 0} to {shape.max_length} characters"
            return "a text" + (" that is not empty" if shape.min_length else "")
        case shapes.ListType():
            return f"a list, each item {_describe(shape.item_type)}"
        case shapes.DictType():
            return f"a table, each value {_describe(shape.value_type)}"
        case shapes.StructType():
            return "a table"
    return "any value"


def _unwrap(shape: Any) -> Any:
    while isinstance(shape, shapes.Metadata):
        shape = shape.type
    return shape


def _table(path: tuple[str, ...]) -> str:
    return f"[{'.'.join(path)}]" if path else "the file"
