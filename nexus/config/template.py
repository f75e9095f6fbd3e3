"""A commented configuration with every key and its default, generated from the records."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect as shapes

from nexus.config.backend_records import BackendConfig, ModelConfig
from nexus.config.budget_records import Budget
from nexus.config.checking import describe
from nexus.config.endpoint_records import CustomEndpoint
from nexus.config.fields import Section, hints_of
from nexus.config.limit_records import Limit, Match
from nexus.config.records import ENVIRONMENT, NOT_SUPPORTED, Config

_WIDTH = 100
_LEFT_OUT = {*NOT_SUPPORTED, "backends.models", "endpoints.custom"}


def template() -> str:
    """The text that `nexus config init` writes. Without edits it loads to the defaults."""
    lines = [
        "# The configuration of Nexus: every key with its default. Lines with # are optional.",
        "# Precedence: command line, environment, this file, defaults.",
        "",
        "# [[backends]]",
        '# name = "ollama-local"',
        '# url = "http://127.0.0.1:11434"',
        '# type = "ollama"',
        "",
    ]
    for name, hint in hints_of(Config).items():
        if name == "backends":
            lines += _list("a backend", BackendConfig, name)
            lines += _list("what is stated of a backend's model", ModelConfig, name, "models")
        elif name == "limits":
            lines += _list("a limit", Limit, name, match=Match)
        elif name == "budgets":
            lines += _list("a budget", Budget, name, match=Match)
        elif isinstance(hint, type) and issubclass(hint, Section) and name not in NOT_SUPPORTED:
            lines += [*_table(hint, (name,)), ""]
            if name == "endpoints":
                lines += _list("an endpoint of your own", CustomEndpoint, name, "custom")
    return "\n".join(lines).rstrip() + "\n"


def _list(
    what: str, record: type[Section], *path: str, match: type[Section] | None = None
) -> Iterator[str]:
    """A table of a list, and its table `match` if there is one, as comments."""
    yield f"# Every key of {what}:"
    yield f"# [[{'.'.join(path)}]]"
    yield from _keys(record, path, "# ")
    if match is not None:
        yield f"# [{'.'.join(path)}.match]"
        yield from _keys(match, (*path, "match"), "# ")
    yield ""


def _table(record: type[Section], path: tuple[str, ...]) -> Iterator[str]:
    yield f"# {(record.__doc__ or '').strip()}"
    yield f"[{'.'.join(path)}]"
    yield from _keys(record, path, "")
    for name, hint in hints_of(record).items():
        if (
            isinstance(hint, type)
            and issubclass(hint, Section)
            and ".".join((*path, name)) not in NOT_SUPPORTED
        ):
            yield ""
            yield from _table(hint, (*path, name))


def _keys(record: type[Section], path: tuple[str, ...], mark: str) -> Iterator[str]:
    defaults = {field.encode_name: field for field in msgspec.structs.fields(record)}
    for name, hint in hints_of(record).items():
        if (isinstance(hint, type) and issubclass(hint, Section)) or ".".join(
            (*path, name)
        ) in _LEFT_OUT:
            continue
        variables = [
            variable for variable, place in ENVIRONMENT.items() if place == (path[-1], name)
        ]
        note = (
            documentation(hint)
            + f" Takes {describe(hint)}."
            + "".join(f" Also ${variable}." for variable in variables)
        )
        yield from (f"# {line}" for line in textwrap.wrap(note, _WIDTH))
        default = field_default(defaults[name])
        if (*path, name) == ("server", "host"):
            mark = "# "  # what it is depends on [auth]
        yield (
            f"{mark}{name} = {toml(default)}"
            if default is not msgspec.NODEFAULT and default is not None
            else f"# {name} ="
        )


def field_default(field: Any) -> Any:
    """A field's default; NODEFAULT if it is required."""
    return (
        field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
    )


def documentation(hint: Any) -> str:
    """The line of documentation that a setting carries."""
    shape = shapes.type_info(hint)
    members = shape.types if isinstance(shape, shapes.UnionType) else (shape,)
    for member in members:
        while isinstance(member, shapes.Metadata):
            text = (member.extra_json_schema or {}).get("description")
            if text:
                return str(text)
            member = member.type  # noqa: PLW2901
    return ""


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{json.dumps(key, ensure_ascii=False)} = {toml(item)}"
                for key, item in value.items()
            )
            + "}"
        )
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
