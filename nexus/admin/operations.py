"""The operations paths: /metrics, /v1/stats, /health, /livez, /readyz; the health process's port has them too."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from flask import Blueprint, Response, jsonify, request

from nexus.admin.access import refusal, shows
from nexus.fleet.identity_proof import CHALLENGE, PROOF, proof
from nexus.fleet.load_table import Row
from nexus.fleet.records import Snapshot
from nexus.fleet.run_directory import Started
from nexus.fleet.status import fleet_health
from nexus.fleet.windows import RecentOutcomes
from nexus.metrics.collector import Collector
from nexus.metrics.exposition import CONTENT_TYPE
from nexus.metrics.stats import stats

_STALE_ROUNDS = 3
_FIGURES = ("/metrics", "/v1/stats")
_QUOTED = rb'(?:[^"\\]|\\.)*'
_BACKEND_URL = re.compile(
    rb'^(nexus_backend_info\{(?:\w+="%b",)*?url=")%b' % (_QUOTED, _QUOTED), re.MULTILINE
)
GATEWAY_HEADER = "x-nexus-gateway"
"""Of the health process's `/livez`: port and host of the gateway it belongs to, which options may have set."""


@dataclass(frozen=True, kw_only=True)
class Operations:
    """What the operations paths look at; each is asked anew, since generation and fleet change under a process.

    `token` is what the metrics ask for, None if they are open; `own_token` that of the run directory; `names_token`
    what `/readyz?verbose` asks for before it names backends, and `/metrics` before it gives their addresses.
    """

    figures: Callable[[], Collector]
    snapshot: Callable[[], Snapshot | None]
    started: Callable[[], Started]
    health_process_alive: Callable[[], bool]
    fleet_age_s: Callable[[], float | None]
    role: str
    workers: Callable[[], Sequence[Row]] = tuple
    token: Callable[[], str | None] = lambda: None
    lately: Callable[[], Mapping[str, RecentOutcomes]] = dict
    own_token: Callable[[], str | None] = lambda: None
    names_token: Callable[[], str | None] = lambda: None

    def uptime_s(self) -> float:
        return max(0.0, time.monotonic() - self.started().monotonic)


def operations_endpoints(operations: Operations) -> Blueprint:
    blueprint = Blueprint("operations", __name__)

    @blueprint.before_request
    def may_see() -> Response | None:
        return refusal(operations.token()) if request.path in _FIGURES else None

    def names_are_shown() -> bool:
        token = operations.names_token()
        return token is None or shows(token)

    @blueprint.get("/metrics")
    def metrics() -> Response:
        content = operations.figures().collect().exposition()
        if not names_are_shown():
            content = _BACKEND_URL.sub(rb"\1", content)
        return Response(content, content_type=CONTENT_TYPE)

    @blueprint.get("/v1/stats")
    def statistics() -> Response:
        reading = operations.figures().collect()
        return jsonify(
            stats(
                reading,
                operations.snapshot(),
                uptime_s=operations.uptime_s(),
                lately=operations.lately(),
            )
        )

    @blueprint.get("/health")
    def health() -> Response:
        return jsonify(fleet_health(operations.snapshot(), operations.uptime_s()))

    @blueprint.get("/livez")
    def live() -> Response:
        response = _probe({operations.role: (True, "it answers")})
        if operations.role == "health_process" and (snapshot := operations.snapshot()):
            server = snapshot.config.server
            response.headers[GATEWAY_HEADER] = f"{server.port} {server.host}"
        challenge, key = request.headers.get(CHALLENGE), operations.own_token()
        if challenge is not None and key is not None:
            response.headers[PROOF] = proof(key, challenge, int(request.environ["SERVER_PORT"]))
        return response

    @blueprint.get("/readyz")
    def ready() -> Response:
        workers = operations.workers()
        checks = readiness(operations, named=names_are_shown()) | _answering(workers)
        advisory = {"health_process", "fleet_fresh"}
        if not workers or any(not row.is_silent(time.monotonic_ns()) for row in workers):
            advisory.add("workers")
        return _probe(checks, advisory=advisory)

    return blueprint


Checks = dict[str, tuple[bool, str]]


def readiness(operations: Operations, *, named: bool = True) -> Checks:
    """What readiness looks at, with the backends' names or their number.

    A dead health process is shown, but must not drain every host at once.
    """
    snapshot, age_s = operations.snapshot(), operations.fleet_age_s()
    usable = [backend.name for backend in snapshot.backends if backend.usable] if snapshot else []
    told = ", ".join(usable) if named or not usable else str(len(usable))
    limit_s = _STALE_ROUNDS * snapshot.config.health_check.interval_seconds if snapshot else 0
    fresh = age_s is not None and (
        age_s <= limit_s or not (snapshot and snapshot.config.health_check.enabled)
    )
    return {
        "fleet_seen": (
            snapshot is not None,
            f"number {snapshot.revision}" if snapshot else "no fleet was published yet",
        ),
        "backend_usable": (bool(usable), told or "no backend that is healthy and takes requests"),
        "health_process": (
            operations.health_process_alive(),
            "whether it runs and its event loop moves",
        ),
        "fleet_fresh": (fresh, "never updated" if age_s is None else f"updated {age_s:.0f} s ago"),
    }


def _answering(workers: Sequence[Row]) -> Checks:
    """Whether the event loops of the workers move."""
    silent = [row.pid for row in workers if row.is_silent(time.monotonic_ns())]
    detail = f"{len(workers) - len(silent)} of {len(workers)} answer"
    if silent:
        detail += f", silent: {', '.join(map(str, silent))}"
    return {"workers": (bool(workers) and not silent, detail)}


def _probe(checks: Checks, *, advisory: Set[str] = frozenset()) -> Response:
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
