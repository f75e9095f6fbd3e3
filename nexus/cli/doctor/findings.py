"""The result of each check, as one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of one check, and how to fix what is wrong."""

    area: str
    state: State
    text: str
    fix: str | None = None

    def as_json(self) -> dict[str, str | None]:
        return {"area": self.area, "state": self.state, "what": self.text, "mend": self.fix}


def ok(area: str, text: str) -> Finding:
    return Finding(area, "ok", text)


def warn(area: str, text: str, fix: str) -> Finding:
    return Finding(area, "warn", text, fix)


def fail(area: str, text: str, fix: str) -> Finding:
    return Finding(area, "fail", text, fix)
