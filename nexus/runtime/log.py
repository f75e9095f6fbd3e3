"""Logs: short constant events with fields, one line each, to standard error.

The fields are the `extra` of a call. If standard error is the journal (`$JOURNAL_STREAM`), every
line starts with its priority, such as `<6>`, which the journal removes. Pretty lines then have no
time, because the journal has its own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from nexus.runtime.stderr import NonBlockingText
from nexus.runtime.text import printable, redact

TRACE = 5
LEVELS: dict[str, int] = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
_NAMES = {TRACE: "trace", 10: "debug", 20: "info", 30: "warn", 40: "error", 50: "error"}
_PRIORITIES = {TRACE: 7, 10: 7, 20: 6, 30: 4, 40: 3, 50: 2}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD and value is not None
    }


def _timestamp(record: logging.LogRecord) -> str:
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{second}.{int(record.msecs):03d}Z"


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _timestamp(record),
            "level": _NAMES.get(record.levelno, "info"),
            "component": record.name.removeprefix("nexus."),
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        text = redact(printable(json.dumps(line, default=str, ensure_ascii=False)))
        return _with_priority(text, record.levelno) if self._journal else text


class PrettyFormatter(logging.Formatter):
    """One line for people: time, level, component, event, then fields as `key=value`."""

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        level = _NAMES.get(record.levelno, "info")
        component = record.name.removeprefix("nexus.")
        fields = " ".join(f"{key}={_shown(value)}" for key, value in _fields(record).items())
        start = "" if self._journal else f"{_timestamp(record)} {level:<5} "
        line = printable(
            f"{start}{component}: {record.getMessage()}" + (f" {fields}" if fields else "")
        )
        if record.exc_info:
            line += "\n" + printable(self.formatException(record.exc_info), keep="\n")
        line = redact(line)
        return _with_priority(line, record.levelno) if self._journal else line


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    return (
        json.dumps(text, ensure_ascii=False)
        if not text or any(c <= " " or c in '"=' for c in text)
        else text
    )


def _with_priority(text: str, level: int) -> str:
    """Put the priority in front of each line, because each is an entry of the journal."""
    start = f"<{_PRIORITIES.get(level, 6)}>"
    return "\n".join(start + line for line in text.split("\n"))


def goes_to_journal() -> bool:
    """Whether standard error is still the stream that `$JOURNAL_STREAM` names."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def make_formatter(kind: str) -> logging.Formatter:
    return (JsonFormatter if kind == "json" else PrettyFormatter)(journal=goes_to_journal())


def fatal(text: str) -> None:
    """Report on standard error why the process cannot start."""
    text = redact(printable(text, keep="\n"))
    sys.stderr.write((_with_priority(text, logging.ERROR) if goes_to_journal() else text) + "\n")


def _dropped_notice(handler: logging.Handler, lines: int) -> str:
    """The line that reports how many lines were dropped while nobody read standard error."""
    record = logging.LogRecord(
        "nexus.log",
        logging.WARNING,
        __file__,
        0,
        "log lines were dropped, nobody read them",
        None,
        None,
    )
    vars(record).update(lines=lines, pid=os.getpid())
    return handler.format(record)


def configure(*, level: str, kind: str, component_levels: Mapping[str, str] | None = None) -> None:
    """Send the logs of this process to standard error. Call it again to change the settings."""
    root = logging.getLogger("nexus")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(make_formatter(kind))
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(LEVELS[level])
    if isinstance(sys.stderr, NonBlockingText):
        sys.stderr.notice = partial(_dropped_notice, handler)
    for name, chosen in (component_levels or {}).items():
        logging.getLogger(f"nexus.{name}").setLevel(LEVELS[chosen])
