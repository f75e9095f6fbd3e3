"""What a request needs a model to do."""

from __future__ import annotations

from typing import Protocol

import msgspec


class Needs(Protocol):
    """What the model must be able to do; `context` in estimated tokens, `task` as `Model.tasks`
    names it. `dialect`: the protocol that its backend must speak. `translations`: other protocols
    for which it can be translated, each with the name of the translation."""

    @property
    def dialect(self) -> str: ...
    @property
    def translations(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def task(self) -> str: ...
    @property
    def vision(self) -> bool: ...
    @property
    def tools(self) -> bool: ...
    @property
    def json_mode(self) -> bool: ...
    @property
    def context(self) -> int: ...


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """Needs that are known already."""

    dialect: str = "openai"
    translations: tuple[tuple[str, str], ...] = ()
    task: str = ""
    vision: bool = False
    tools: bool = False
    json_mode: bool = False
    context: int = 0


ANYTHING = Requirements()
