"""The dashboard: a page that is complete without scripts, and server-sent events that update it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from flask import Blueprint, Response, abort, request, send_from_directory

from nexus.admin.access import Guard, error_response, require_token
from nexus.admin.context import AdminContext
from nexus.admin.history import MAX_REQUESTS, Filter
from nexus.admin.page_cache import PageCache, TooManyRenders
from nexus.admin.pages import render_page
from nexus.admin.responses import PastRequest
from nexus.errors import RequestFailed

log = logging.getLogger("nexus.web")

ASSETS = Path(__file__).parent / "assets"
_MAX_ROWS = 100
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def require_operator(context: AdminContext, token: Callable[[], str]) -> Guard:
    """Refuse a page for operators without their token, and any page if the dashboard is off."""

    def check() -> Response | None:
        snapshot = context.snapshot()
        if snapshot is not None and not snapshot.config.dashboard.enabled:
            abort(404)
        return require_token(token())

    return check


def dashboard_endpoints(context: AdminContext) -> Blueprint:
    blueprint = Blueprint("dashboard", __name__)
    cache: PageCache[bytes] = PageCache()

    def requests_for(wanted: Filter, limit: int) -> list[PastRequest]:
        records = context.latest_requests(MAX_REQUESTS)
        return [PastRequest.of(record) for record in records if wanted.matches(record)][:limit]

    @blueprint.before_request
    def check_access() -> Response | None:
        snapshot = context.snapshot()
        settings = snapshot.config.dashboard if snapshot else None
        if settings and (
            not settings.enabled or (settings.operations_only and context.role == "worker")
        ):
            abort(404)
        return require_token(context.token_for("dashboard"))

    @blueprint.after_request
    def add_headers(response: Response) -> Response:
        for name, value in PAGE_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @blueprint.get("/")
    def dashboard() -> Response:
        wanted = Filter(request.args, partial_names=True)
        page = cache.get(("/", wanted.key), lambda: _page(wanted))
        return Response(page, mimetype="text/html")

    def _page(wanted: Filter) -> bytes:
        state = context.live.state()
        try:
            tick, backlog = state.decoded() if state else (None, None)
        except msgspec.DecodeError as error:
            log.error(
                "the dashboard's state is damaged; the health process replaces it",
                extra={"why": error},
            )
            tick = backlog = None
        age_s = max(0.0, time.time() - tick.time) if tick else None
        rows = requests_for(wanted, _MAX_ROWS)
        operations = context.role == "health_process"
        page = render_page(tick, backlog, rows, wanted, age_s=age_s, operations=operations)
        return page.encode()

    @blueprint.get("/v1/history")
    def history() -> Response:
        wanted = Filter(request.args)
        content = cache.get(
            ("/v1/history", wanted.key),
            lambda: msgspec.json.encode(requests_for(wanted, wanted.limit)),
        )
        return Response(content, mimetype="application/json")

    @blueprint.get("/v1/live")
    def live() -> Response:
        response = Response(context.live.events(), mimetype="text/event-stream")
        response.headers["x-accel-buffering"] = "no"
        return response

    @blueprint.get("/assets/<path:name>")
    def asset(name: str) -> Response:
        response = send_from_directory(ASSETS, name)
        response.headers["cache-control"] = "no-cache"
        return response

    @blueprint.errorhandler(RequestFailed)
    def invalid(failure: RequestFailed) -> Response:
        fault = failure.fault
        return error_response(fault.status or 400, fault.code, failure.message, param=failure.param)

    @blueprint.errorhandler(TooManyRenders)
    def too_many(_: TooManyRenders) -> Response:
        message = "This page was requested too often; try again in a second."
        response = error_response(429, "too_many_requests", message)
        response.headers["retry-after"] = "1"
        return response

    return blueprint
