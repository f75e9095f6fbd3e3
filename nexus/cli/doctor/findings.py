"""What the doctor finds: one line for each thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and, where it is not well, what to do."""

    area: str
    state: State
    what: str
    mend: str | None = None


def ok(area: str, what: str) -> Finding:
    return Finding(area, "ok", what)


def warn(area: str, what: str, mend: str) -> Finding:
    return Finding(area, "warn", what, mend)


def fail(area: str, what: str, mend: str) -> Finding:
    return Finding(area, "fail", what, mend)
