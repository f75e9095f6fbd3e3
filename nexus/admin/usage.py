"""The endpoint that reports what was used and what it cost."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Any, Protocol

from flask import Blueprint, Response, request

from nexus.access.prices import usd
from nexus.admin.admin_blueprint import admin_blueprint
from nexus.admin.responses import json_response
from nexus.config import ConfigError
from nexus.metrics.usage import NAMES
from nexus.runtime.documents import Document

BY = ("hour", *NAMES)
"""What usage can be reported by. Hours are those of UTC."""
FORMATS = ("json", "csv")
_PARAMETERS = ("by", "from", "to", "format")
SUMS = ("requests", "input_tokens", "cached_tokens", "output_tokens", "cost_usd")


class UsageReport(Document, frozen=True):
    """Sums of usage. Each row has the fields of `by`, and the sums.

    Attributes:
        by: What the rows are by.
        since: The start of the span of time; null for everything.
        until: Its end, which does not belong to it.
    """

    by: list[str]
    since: str | None
    until: str | None
    rows: list[dict[str, str | int]]


class UsageSource(Protocol):
    """Where reports come from."""

    def report(
        self,
        by: Sequence[str],
        *,
        since: float | None,
        until: float | None,
        only: tuple[str, Sequence[str]] | None = None,
    ) -> list[tuple[Any, ...]] | None:
        """Rows of `by` and the sums; None if nothing was ever recorded.

        `only` is one of `NAMES` and the values that count.
        """


def usage_endpoints(source: UsageSource, *, token: Callable[[], str]) -> Blueprint:
    """`/admin/usage`. `token` returns the operators' token."""
    blueprint = admin_blueprint("admin_usage", "/admin/usage", token)

    @blueprint.get("")
    def usage() -> Response:
        given = request.args
        if unknown := [name for name in given if name not in _PARAMETERS]:
            raise ConfigError(
                f"There is no {unknown[0][:100]!r} here; there are {', '.join(_PARAMETERS)}."
            )
        by = list(dict.fromkeys(name for name in given.get("by", "").split(",") if name))
        if unknown := [name for name in by if name not in BY]:
            raise ConfigError(f"by takes {', '.join(BY)}, not {unknown[0][:100]!r}.")
        if (form := given.get("format", FORMATS[0])) not in FORMATS:
            raise ConfigError(f"format takes {' or '.join(FORMATS)}, not {form[:100]!r}.")
        since, until = _time(given.get("from"), "from"), _time(given.get("to"), "to")
        if since and until and until <= since:
            raise ConfigError("to takes a time after from; the end does not belong to the report.")
        found = source.report(
            by,
            since=since.timestamp() if since else None,
            until=until.timestamp() if until else None,
        )
        report = UsageReport(
            by=by,
            since=since.isoformat() if since else None,
            until=until.isoformat() if until else None,
            rows=[_row(by, row) for row in found or ()],
        )
        if form == "json":
            return json_response(report)
        return Response(as_csv(report.by, report.rows), mimetype="text/csv")

    return blueprint


def as_csv(by: Sequence[str], rows: Sequence[dict[str, str | int]]) -> str:
    """Rows of a report as CSV, with a head."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*by, *SUMS], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        # A text that begins like a formula must not become one in a spreadsheet.
        writer.writerow(
            {
                name: f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" else value
                for name, value in row.items()
                if value != ""
            }
        )
    return text.getvalue()


def _row(by: Sequence[str], row: tuple[Any, ...]) -> dict[str, str | int]:
    names, sums = row[: len(by)], row[len(by) :]
    shown = {
        name: datetime.fromtimestamp(value, UTC).isoformat() if name == "hour" else value
        for name, value in zip(by, names, strict=True)
    }
    return {**shown, **dict(zip(SUMS, (*sums[:-1], usd(sums[-1])), strict=True))}


def _time(text: str | None, name: str) -> datetime | None:
    """A day or a time in UTC; None if it is not given."""
    if text is None:
        return None
    try:
        if len(text) == len("2026-11-27"):
            day = date.fromisoformat(text)
            return datetime(day.year, day.month, day.day, tzinfo=UTC)
        given = datetime.fromisoformat(text)
        return given.astimezone(UTC) if given.tzinfo else given.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # its zone may shift a time out of the years 1 to 9999
        raise ConfigError(
            f"{name} takes a day such as 2026-11-27, or a time with a zone."
        ) from None
