"""The dashboard: a page that is readable as it comes, kept fresh by server-sent events where scripts may run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from flask import Blueprint, Response, abort, request, send_from_directory

from nexus.admin.access import refusal, refuse
from nexus.admin.history import MOST, Filter, entry
from nexus.admin.limits import Costly, TooOften
from nexus.admin.live_updates import Live
from nexus.admin.pages import page
from nexus.dialects.openai.errors import error_body
from nexus.errors import FAULTS, RequestFailed
from nexus.fleet.records import Snapshot
from nexus.fleet.request_log import RequestRecord

log = logging.getLogger("nexus.web")

_ASSETS = Path(__file__).parent / "assets"
_SHOWN = 100
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class DashboardContext:
    """What the dashboard looks at. `latest` gives the last requests of all processes, at most so many, newest first.

    `token` is the operators' where the dashboard asks for it; `for_clients`: whether this is the clients' address.
    """

    snapshot: Callable[[], Snapshot | None]
    latest: Callable[[int], list[RequestRecord]]
    live: Live
    token: Callable[[], str | None]
    for_clients: bool


def dashboard_endpoints(viewed: DashboardContext) -> Blueprint:
    blueprint = Blueprint("dashboard", __name__)
    costly: Costly[bytes] = Costly()

    @blueprint.before_request
    def may_see() -> Response | None:
        snapshot = viewed.snapshot()
        settings = snapshot.config.dashboard if snapshot else None
        if settings and (not settings.enabled or (settings.operations_only and viewed.for_clients)):
            abort(404)
        return refusal(viewed.token())

    @blueprint.after_request
    def careful(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @blueprint.get("/")
    def dashboard() -> Response:
        wanted = Filter(request.args, by_part=True)
        return Response(costly.page(("/", wanted.key), lambda: _page(wanted)), mimetype="text/html")

    def _page(wanted: Filter) -> bytes:
        state = viewed.live.state()
        try:
            tick, past = (
                (msgspec.json.decode(line) for line in (state.tick, state.history))
                if state
                else ({}, {})
            )
        except msgspec.DecodeError as error:
            log.error(
                "the dashboard's state cannot be read; the health process writes it anew",
                extra={"why": error},
            )
            tick, past = {}, {}
        found = _matching(wanted, _SHOWN)
        age_s = max(0.0, time.time() - tick["time"]) if tick else None
        return page(tick, past, [entry(record) for record in found], wanted, age_s=age_s).encode()

    @blueprint.get("/v1/history")
    def history() -> Response:
        wanted = Filter(request.args)
        content = costly.page(
            ("/v1/history", wanted.key),
            lambda: msgspec.json.encode(
                [entry(record) for record in _matching(wanted, wanted.limit)]
            ),
        )
        return Response(content, mimetype="application/json")

    @blueprint.get("/v1/live")
    def live() -> Response:
        response = Response(viewed.live.events(), mimetype="text/event-stream")
        response.headers["x-accel-buffering"] = "no"
        return response

    @blueprint.get("/assets/<path:name>")
    def asset(name: str) -> Response:
        response = send_from_directory(_ASSETS, name)
        response.headers["cache-control"] = "no-cache"
        return response

    @blueprint.errorhandler(RequestFailed)
    def invalid(failure: RequestFailed) -> Response:
        fault = FAULTS[failure.fault.code]
        status = fault.status or 400
        content = error_body(failure.message, status=status, code=fault.code, param=failure.param)
        return Response(content, status, mimetype="application/json")

    @blueprint.errorhandler(TooOften)
    def too_often(_: TooOften) -> Response:
        response = refuse(
            429, "too_many_requests", "This page was asked for too often; try again in a second."
        )
        response.headers["retry-after"] = "1"
        return response

    def _matching(wanted: Filter, limit: int) -> list[RequestRecord]:
        return [record for record in viewed.latest(MOST) if wanted.takes(record)][:limit]

    return blueprint
