"""Logs: short constant events with fields, one line each, to standard error.

The fields are the `extra` of a call. If standard error is the journal (`$JOURNAL_STREAM`), every
line starts with its priority, such as `<6>`, which the journal removes. Pretty lines then have no
time, because the journal has its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import msgspec

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
COMPONENTS = (
    "access", "admin", "app", "cli", "config", "dialects", "fleet", "health", "http", "metrics",
    "providers", "proxy", "routing", "runtime", "serve", "server", "web",
)  # fmt: skip
"""What can have a level of its own: the parts of Nexus, and loggers with other names."""
_NAMES = {TRACE: "trace", 10: "debug", 20: "info", 30: "warn", 40: "error", 50: "error"}
_PRIORITIES = {TRACE: 7, 10: 7, 20: 6, 30: 4, 40: 3, 50: 2}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}
_NUMBERS = (int, float)
_AMBIGUOUS = re.compile(r'[\x00- "=]')
"""A value with one of these is quoted."""
_ROOT = logging.getLogger("nexus")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD and value is not None
    }


@lru_cache(maxsize=1)
def _date_and_time(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _timestamp(created: float) -> str:
    second = int(created)
    return f"{_date_and_time(second)}.{int((created - second) * 1000):03d}Z"


class Event(NamedTuple):
    """What a line says. `created` is in seconds since the epoch, `trace` that of an exception."""

    created: float
    level: int
    logger: str
    text: str
    fields: Mapping[str, Any]
    trace: str = ""

    @property
    def component(self) -> str:
        return self.logger.removeprefix("nexus.")


class LineFormatter(logging.Formatter, ABC):
    """Formats an event, which may come without a record of the logging module."""

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        fields = _fields(record)
        return self.line(
            Event(record.created, record.levelno, record.name, record.getMessage(), fields, trace)
        )

    def line(self, event: Event) -> str:
        """The line of an event, without its end."""
        text = redact(self._line(event))
        return _with_priority(text, event.level) if self._journal else text

    @abstractmethod
    def _line(self, event: Event) -> str: ...


class JsonFormatter(LineFormatter):
    """One JSON object a line."""

    def _line(self, event: Event) -> str:
        line = {
            "time": _timestamp(event.created),
            "level": _NAMES.get(event.level, "info"),
            "component": event.component,
            "event": event.text,
            **event.fields,
        }
        if event.trace:
            line["trace"] = event.trace
        return printable(_json(line))


class PrettyFormatter(LineFormatter):
    """One line for people: time, level, component, event, then fields as `key=value`."""

    def _line(self, event: Event) -> str:
        level = _NAMES.get(event.level, "info")
        start = "" if self._journal else f"{_timestamp(event.created)} {level:<5} "
        values = "".join([f" {key}={_shown(value)}" for key, value in event.fields.items()])
        line = printable(f"{start}{event.component}: {event.text}{values}")
        return f"{line}\n{printable(event.trace, keep=chr(10))}" if event.trace else line


def _shown(value: Any) -> str:
    if not isinstance(value, str):
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, _NUMBERS):
            return str(value)
        value = str(value)
    return (
        value if value and not _AMBIGUOUS.search(value) else json.dumps(value, ensure_ascii=False)
    )


def _json(line: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=str).decode()
    except (TypeError, UnicodeEncodeError, OverflowError):  # a lone surrogate, an odd key
        return json.dumps(line, default=str, ensure_ascii=False, separators=(",", ":"))


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


def make_formatter(kind: str) -> LineFormatter:
    return (JsonFormatter if kind == "json" else PrettyFormatter)(journal=goes_to_journal())


def fatal(text: str) -> None:
    """Report on standard error why the process cannot start."""
    text = redact(printable(text, keep="\n"))
    sys.stderr.write((_with_priority(text, logging.ERROR) if goes_to_journal() else text) + "\n")


def _dropped_notice(formatter: LineFormatter, lines: int) -> str:
    """The line that reports how many lines were dropped while nobody read standard error."""
    text, fields = "log lines were dropped, nobody read them", {"lines": lines, "pid": os.getpid()}
    return formatter.line(Event(time.time(), logging.WARNING, "nexus.log", text, fields))


def configure(*, level: str, kind: str, component_levels: Mapping[str, str] | None = None) -> None:
    """Send the logs of this process to standard error. Call it again to change the settings."""
    handler, formatter = logging.StreamHandler(sys.stderr), make_formatter(kind)
    handler.setFormatter(formatter)
    _ROOT.handlers[:] = [handler]
    _ROOT.propagate = False
    _ROOT.setLevel(LEVELS[level])
    if isinstance(sys.stderr, NonBlockingText):
        sys.stderr.notice = partial(_dropped_notice, formatter)
    levels = {name: LEVELS[chosen] for name, chosen in (component_levels or {}).items()}
    for name in COMPONENTS:
        logger, wanted = logging.getLogger(f"nexus.{name}"), levels.get(name, logging.NOTSET)
        if logger.level != wanted:  # setting it clears a cache of all loggers
            logger.setLevel(wanted)


def info(logger: logging.Logger, event: str, fields: Mapping[str, Any]) -> None:
    """Log an event as `logger.info(event, extra=fields)` does, in a third of the time.

    For the events of each request. The caller has asked whether the logger is enabled.
    """
    handler = _ROOT.handlers[0] if len(_ROOT.handlers) == 1 else None
    formatter = handler and handler.formatter
    if not isinstance(handler, logging.StreamHandler) or not isinstance(formatter, LineFormatter):
        logger.info(event, extra=fields)
        return
    given = {key: value for key, value in fields.items() if value is not None}
    line = formatter.line(Event(time.time(), logging.INFO, logger.name, event, given))
    with contextlib.suppress(OSError, ValueError):  # no request fails for its line
        handler.stream.write(line + handler.terminator)
