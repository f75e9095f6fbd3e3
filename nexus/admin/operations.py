"""Endpoints for monitoring: /metrics, /v1/stats, /v1/problems, /health, /livez, /readyz."""

from __future__ import annotations

import re
import time
from collections.abc import Set

from flask import Blueprint, Response, request
from msgspec.structs import replace

from nexus.admin.access import has_token, require_token
from nexus.admin.context import AdminContext
from nexus.admin.responses import json_response
from nexus.fleet.identity_proof import CHALLENGE, PROOF, proof
from nexus.fleet.status import fleet_health
from nexus.metrics.exposition import CONTENT_TYPE
from nexus.metrics.stats import stats

STALE_ROUNDS = 3
"""The fleet counts as stale when so many rounds of probes were due since the last one ended."""
_PROTECTED = ("/metrics", "/v1/stats", "/v1/problems")
_QUOTED = rb'(?:[^"\\]|\\.)*'
_BACKEND_URL = re.compile(
    rb'^(nexus_backend_info\{(?:\w+="%b",)*?url=")%b' % (_QUOTED, _QUOTED), re.MULTILINE
)
GATEWAY_HEADER = "x-nexus-gateway"
"""Header of the health process's `/livez`: port and host of its gateway, which options may set."""


def operations_endpoints(context: AdminContext) -> Blueprint:
    blueprint = Blueprint("operations", __name__)

    @blueprint.before_request
    def check_token() -> Response | None:
        return require_token(context.token_for("metrics")) if request.path in _PROTECTED else None

    def may_see_names() -> bool:
        token = context.token_for_names()
        return token is None or has_token(token)

    @blueprint.get("/metrics")
    def metrics() -> Response:
        content = context.generation().collector.collect().exposition()
        if not may_see_names():
            content = _BACKEND_URL.sub(rb"\1", content)
        return Response(content, content_type=CONTENT_TYPE)

    @blueprint.get("/v1/stats")
    def statistics() -> Response:
        generation = context.generation()
        return json_response(
            stats(
                generation.collector.collect(),
                context.snapshot(),
                uptime_s=generation.uptime_s(),
                recent=context.recent_outcomes(),
            )
        )

    @blueprint.get("/v1/problems")
    def problems() -> Response:
        listed = context.problems()
        if not may_see_names():  # details name addresses, which `/metrics` hides too
            hidden = [replace(problem, detail=None) for problem in listed.problems]
            listed = replace(listed, problems=hidden)
        return json_response(listed)

    @blueprint.get("/health")
    def health() -> Response:
        return json_response(fleet_health(context.snapshot(), context.generation().uptime_s()))

    @blueprint.get("/livez")
    def live() -> Response:
        response = _probe_response({context.role: (True, "it responds")})
        if context.role == "health_process" and (snapshot := context.snapshot()):
            server = snapshot.config.server
            response.headers[GATEWAY_HEADER] = f"{server.port} {server.host}"
        challenge, key = request.headers.get(CHALLENGE), context.run_dir_token()
        if challenge is not None and key is not None:
            response.headers[PROOF] = proof(key, challenge, int(request.environ["SERVER_PORT"]))
        return response

    @blueprint.get("/readyz")
    def ready() -> Response:
        checks = _fleet_checks(context, show_names=may_see_names())
        checks["workers"], all_silent = _worker_check(context)
        # A dead health process must not take every host out at once, nor must one silent worker.
        advisory = {"health_process", "fleet_fresh"} | ({"workers"} if not all_silent else set())
        return _probe_response(checks, advisory=advisory)

    return blueprint


Check = tuple[bool, str]
"""Whether it passed, and a detail for `?verbose`."""


def _fleet_checks(context: AdminContext, *, show_names: bool) -> dict[str, Check]:
    snapshot, age_s = context.snapshot(), context.fleet_age_s()
    usable = [backend.name for backend in snapshot.backends if backend.usable] if snapshot else []
    detail = (", ".join(usable) if show_names else str(len(usable))) if usable else ""
    settings = snapshot.config.health_check if snapshot else None
    limit_s = STALE_ROUNDS * settings.interval_seconds if settings else 0
    fresh = age_s is not None and (age_s <= limit_s or not (settings and settings.enabled))
    return {
        "fleet_seen": (
            snapshot is not None,
            f"revision {snapshot.revision}" if snapshot else "no fleet was published yet",
        ),
        "backend_usable": (bool(usable), detail or "no backend that is healthy and takes requests"),
        "health_process": (
            context.health_process_alive(),
            "whether it runs and its event loop moves",
        ),
        "fleet_fresh": (fresh, "never updated" if age_s is None else f"updated {age_s:.0f} s ago"),
    }


def _worker_check(context: AdminContext) -> tuple[Check, bool]:
    """Whether the event loops of all workers move, and whether that of none does."""
    workers = context.generation().slot_lease.workers()
    silent = [row.pid for row in workers if row.is_silent(time.monotonic_ns())]
    detail = f"{len(workers) - len(silent)} of {len(workers)} respond"
    if silent:
        detail += f", silent: {', '.join(map(str, silent))}"
    return (bool(workers) and not silent, detail), bool(silent) and len(silent) == len(workers)


def _probe_response(checks: dict[str, Check], *, advisory: Set[str] = frozenset()) -> Response:
    ok = all(good for name, (good, _) in checks.items() if name not in advisory)
    lines = ["ok" if ok else "not ready"]
    if "verbose" in request.args:
        lines = [
            f"[{'+' if good else '!' if name in advisory else '-'}] {name}: {detail}"
            for name, (good, detail) in checks.items()
        ] + lines
    return Response(
        "\n".join(lines) + "\n", 200 if ok else 503, content_type="text/plain; charset=utf-8"
    )
