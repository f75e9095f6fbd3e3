"""The operators' page of usage, budgets, and limits. It has no scripts, only links."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlencode

from flask import Blueprint, Response, request

from nexus.access.budgets import MAX_SUBJECTS
from nexus.admin.context import AdminContext
from nexus.admin.dashboard import PAGE_HEADERS, require_operator
from nexus.admin.pages import render
from nexus.admin.usage import UsageSource
from nexus.admin.usage_view import (
    BAR,
    HEIGHT,
    MOST_SERIES,
    SPANS,
    UsageView,
    ranked,
    span_of,
    usage_view,
)

_BY = ("team", "key", "model")


def usage_page(
    context: AdminContext, source: UsageSource, *, token: Callable[[], str]
) -> Blueprint:
    """`/usage?by=team&days=31`. `token` returns the operators' token."""
    blueprint = Blueprint("usage_page", __name__)
    blueprint.before_request(require_operator(context, token))

    @blueprint.get("/usage")
    def usage() -> Response:
        collector, snapshot = context.generation().collector, context.snapshot()
        view, report = _view(source, request.args.get("by"), request.args.get("days"))
        states = collector.budget_states()
        page = render(
            "usage.html",
            view=view,
            by=_BY,
            spans=SPANS,
            report=report,
            names={key.id: key.name for key in snapshot.config.keys} if snapshot else {},
            budgets=[state.summary for state in states[:MAX_SUBJECTS]],
            more_budgets=max(0, len(states) - MAX_SUBJECTS),
            levels=collector.limit_levels(),
            top=MOST_SERIES,
            bar=BAR,
            height=HEIGHT,
        )
        return Response(page, mimetype="text/html", headers=PAGE_HEADERS)

    return blueprint


def _view(source: UsageSource, by: str | None, days: str | None) -> tuple[UsageView, str]:
    """What is shown, and the query of the same as a report by the hour; defaults for others."""
    by = by if by in _BY else _BY[0]
    span = next((span for span in SPANS if str(span.days) == days), SPANS[2])
    since, until = span_of(time.time(), span)
    found = ranked(source.report([by], since=since, until=until) or ())
    names = [one.name for one in found[:MOST_SERIES]]
    view = usage_view(
        found,
        by=by,
        span=span,
        since=since,
        of_hours=source.report(["hour"], since=since, until=until) or (),
        of_series=source.report(["hour", by], since=since, until=until, only=(by, names)) or (),
    )
    start, end = (datetime.fromtimestamp(at, UTC).isoformat() for at in (since, until))
    return view, urlencode({"by": f"hour,{by}", "from": start, "to": end, "format": "csv"})
