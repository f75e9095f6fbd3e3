"""The list of what is wrong with the gateway, which the health process writes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import msgspec

from nexus.runtime.documents import Amount, Document
from nexus.runtime.files import write_atomically

_FILE = "problems.json"
_STALE_S = 15.0
"""Age from which the list is stale: the health process writes it every second."""


class Problem(Document, frozen=True):
    """Something that is wrong with the gateway.

    Attributes:
        code: Stable name of the kind of problem.
        severity: `error` if requests fail or counts are wrong, else `warning`.
        subject: The part of the gateway; the backend's name for `backend_…`.
        message: What is wrong, without a full stop.
        detail: The error behind it, which may name addresses.
        hint: What to do about it.
        since: When it began, in Unix seconds, if that is known.
    """

    code: str
    severity: Literal["error", "warning"]
    subject: str
    message: str
    detail: str | None
    hint: str
    since: Amount | None

    @property
    def text(self) -> str:
        """Message and detail as one sentence."""
        return f"{self.message}: {self.detail.rstrip('.')}." if self.detail else f"{self.message}."


class ProblemList(Document, frozen=True):
    """`/v1/problems`; `checked_at` in Unix seconds."""

    checked_at: Amount
    problems: list[Problem]


def problem(
    code: str,
    subject: str,
    message: str,
    hint: str,
    *,
    detail: str | None = None,
    warning: bool = False,
    since: float | None = None,
) -> Problem:
    return Problem(
        code=code,
        severity="warning" if warning else "error",
        subject=subject,
        message=message,
        detail=detail,
        hint=hint,
        since=since,
    )


def write_problems(run_dir: Path, problems: ProblemList) -> None:
    """Replace the list. Raises OSError."""
    write_atomically(run_dir / _FILE, msgspec.json.encode(problems))


def read_problems(run_dir: Path, *, health_process_alive: bool) -> ProblemList:
    """The list for other processes, with what the health process cannot report itself."""
    now = time.time()
    try:
        written = msgspec.json.decode((run_dir / _FILE).read_bytes(), type=ProblemList)
    except (OSError, msgspec.DecodeError):
        written = ProblemList(checked_at=0.0, problems=[])
    if not health_process_alive:
        own = [
            problem(
                "health_process_down",
                "health process",
                "The health process does not run or hangs, so no backend is probed",
                "see its log; start it with `systemctl start nexus-health`, "
                "or `nexus-health` with the same run directory",
            )
        ]
    elif now - written.checked_at > _STALE_S:
        own = [
            problem(
                "problems_stale",
                "health process",
                "The health process does not write its state into the run directory",
                "see its log, and whether the run directory is full",
            )
        ]
    else:
        own = []
    return ProblemList(checked_at=written.checked_at, problems=[*own, *written.problems])
