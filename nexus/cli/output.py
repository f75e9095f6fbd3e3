"""The output of commands: tables for people, JSON for machines, one sentence for a failure.

click leaves colours out if the output is no terminal, `wants_colour` if `$NO_COLOR` is set.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import wraps
from typing import Any

import click

from nexus.runtime.text import printable


class Exit(IntEnum):
    """Exit statuses, the same for every command. Ctrl-C ends a command with 130."""

    OK = 0
    NEGATIVE = 1
    USAGE = 2
    UNREACHABLE = 3


EXIT_STATUSES: dict[int, str] = {
    Exit.OK: "success, and the result is good",
    Exit.NEGATIVE: "success, but the result is bad: unhealthy, not found, refused, check failed",
    Exit.USAGE: "wrong usage, or an invalid configuration or token; nothing was changed",
    Exit.UNREACHABLE: "no gateway responded; the message says which addresses were tried",
}


class Failure(click.ClickException):
    """The command ends with one sentence on standard error and this exit status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]  # click documents this

    def show(self, file: Any = None) -> None:
        print_text(self.message, file=file, err=file is None)


def wants_colour() -> bool | None:
    """False if the user wants no colours; None lets click decide by the terminal."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")


@dataclass
class Result:
    """The result of a command.

    Attributes:
        data: What `--json` prints; msgspec structs and dataclasses are fine.
        text: What people read, or a function that makes it; empty prints nothing.
        notes: Lines for standard error, printed either way.
        failure: Raised after the output.
        exit: The exit status if nothing failed.
    """

    data: Any
    text: str | Callable[[], str] = ""
    notes: Sequence[str] = ()
    failure: Exception | None = None
    exit: Exit = Exit.OK


def returns_result(command: Callable[..., Result]) -> Callable[..., None]:
    """Adds `--json` to a command that returns a `Result`, and prints it as JSON or as text."""

    @json_option
    @wraps(command)
    def run(*args: Any, as_json: bool, **options: Any) -> None:
        result = command(*args, **options)
        if as_json:
            print_json(result.data)
        elif text := result.text if isinstance(result.text, str) else result.text():
            print_text(text)
        for note in result.notes:
            print_text(note, err=True)
        if result.failure:
            raise result.failure
        if result.exit:
            sys.exit(result.exit)

    return run


_OWN_STYLES = re.compile(r"(\x1b\[(?:0|1|2|31|32|33)m)")
"""The escape sequences of the styles that commands use."""


def safe(text: str, *, keep: str = "") -> str:
    """`text` without anything that a terminal would interpret, except our own colours."""
    parts = _OWN_STYLES.split(text)
    return "".join(part if n % 2 else printable(part, keep=keep) for n, part in enumerate(parts))


def print_text(text: str, **how: Any) -> None:
    """Print text that may come from elsewhere, with its control characters escaped."""
    click.echo(safe(text, keep="\n"), **how)


def print_json(value: Any) -> None:
    import msgspec

    print_text(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Columns under their heads; those in `right` are right-aligned, empty ones left out."""
    rows = [[safe(cell) for cell in row] for row in rows]
    shown = [n for n in range(len(head)) if any(click.unstyle(row[n]) for row in rows)]
    widths = {n: max(len(click.unstyle(row[n])) for row in (head, *rows)) for n in shown}

    def line(cells: Sequence[str]) -> str:
        parts = []
        for n in shown:
            space = " " * (widths[n] - len(click.unstyle(cells[n])))
            parts.append(space + cells[n] if head[n] in right else cells[n] + space)
        return "  ".join(parts).rstrip()

    return "\n".join([click.style(line(head), bold=True), *map(line, rows)])


_COLOURS = {
    "healthy": "green", "degraded": "yellow", "unhealthy": "red", "unknown": "yellow",
    "draining": "yellow",
    "closed": "green", "half open": "yellow", "open": "red",
    "ok": "green", "warn": "yellow", "fail": "red", "Success": "green", "Error": "red",
}  # fmt: skip


def state(word: str, text: str | None = None) -> str:
    """A state's word (or another text for it) in its colour."""
    return click.style(text or word, fg=_COLOURS.get(word))


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def milliseconds(value: float | None) -> str:
    """A duration as people read it: 3.2 ms, 412 ms, 2.41 s, 3 min 20 s."""
    if value is None:
        return "-"
    if value < 1000:
        return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"
    return f"{value / 1000:.2f} s" if value < 60_000 else duration(value / 1000)


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    remaining, parts = int(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if remaining >= size:
            parts.append(f"{remaining // size} {unit}")
            remaining %= size
    return " ".join(parts[:2]) or "0 s"


def since(moment: float) -> str:
    """How long ago a moment in Unix seconds was."""
    return duration(max(0.0, time.time() - moment))


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def format_number(value: float) -> str:
    """A number, without a decimal point if it is whole."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"
