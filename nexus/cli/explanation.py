"""The result of `nexus route explain`, from the run directory of a running gateway."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from nexus.cli.gateway import last_fleet, run_directory
from nexus.cli.output import Exit, Result, state, table
from nexus.config import ConfigError
from nexus.dialects.base import InvalidBody, ParsedRequest
from nexus.dialects.json_body import read_fields
from nexus.fleet.circuits import CircuitTable
from nexus.fleet.load_table import LoadTable
from nexus.fleet.prefix_table import PrefixTable
from nexus.fleet.status import status_of
from nexus.http.headers import RequestHeaders
from nexus.proxy.custom_endpoints import custom_endpoints
from nexus.proxy.endpoint_table import Endpoint
from nexus.proxy.endpoints import ENDPOINTS
from nexus.proxy.session import OVERRIDE, SessionReader
from nexus.routing.context import Conditions, RouteQuery
from nexus.routing.explain import Explanation, explain
from nexus.routing.needs import ANYTHING, Needs, Requirements
from nexus.routing.table import RouteTable


def route_explain(
    config: str | None,
    model: str,
    *,
    body: str | None,
    session: str | None,
    key: str,
    endpoint: str | None,
    flexible: bool,
) -> Result:
    """What the router would do."""
    snapshot, generation = last_fleet(run_directory(config))
    routes, load_table = RouteTable(snapshot), LoadTable(generation.load)
    circuits, prefixes = CircuitTable(generation.circuits), PrefixTable(generation.prefixes)
    resolved = routes.resolve(model)
    ENDPOINTS.replace_custom(custom_endpoints(snapshot.config))
    row = next((one for one in ENDPOINTS if one.name == endpoint), None)
    if endpoint is not None and row is None:
        known = ", ".join(sorted(ENDPOINTS.names))
        raise click.BadParameter(f"There is no endpoint {endpoint!r}; known are {known}.")
    parsed = _parsed(body, row) if body else ParsedRequest(model=model, needs=_needs(row))
    scope = key if routes.affinity.scope == "key" else ""
    headers = RequestHeaders.of([(OVERRIDE, session)] if session else [])
    query = RouteQuery(
        model=resolved,
        needs=parsed.needs,
        constraints=routes.constraints(model, resolved),
        flexible=flexible,
        session=SessionReader(headers, parsed, routes.affinity, resolved, scope, prefixes.seed),
    )
    now_ns = time.monotonic_ns()
    explanation = explain(
        routes,
        query,
        Conditions(
            load=load_table.pending,
            holders=prefixes.holders,
            status=lambda column, model: status_of(
                column, model, circuits, load_table, config=snapshot.config, now_ns=now_ns
            ),
        ),
        name=model,
    )
    exit_status = Exit.NEGATIVE if explanation.refusal else Exit.OK
    return Result(explanation, lambda: _text(explanation), exit=exit_status)


def _needs(endpoint: Endpoint | None) -> Needs:
    """What any request to an endpoint needs."""
    if endpoint is None:
        return ANYTHING
    form = endpoint.form
    return Requirements(
        dialect=endpoint.dialect.NAME, translations=form.translations, task=form.task
    )


def _parsed(file: str, endpoint: Endpoint | None) -> ParsedRequest:
    """The fields of a request body that routing needs."""
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        fields = read_fields(content)
        endpoint = endpoint or ENDPOINTS.for_fields(fields)
        if "model" not in fields:
            content = endpoint.dialect.replace_model(content, "any")
        return endpoint.dialect.parse_request(content, endpoint.form)
    except OSError as error:
        raise ConfigError(f"{file}: it cannot be read ({error.strerror}).") from error
    except InvalidBody as error:
        raise ConfigError(f"{file}: this is not a request ({error}).") from error


def _text(shown: Explanation) -> str:
    alias = f" is an alias of {shown.resolved}" if shown.resolved != shown.asked else ""
    lines = [f"{shown.asked}{alias}"]
    if len(shown.chain) > 1:
        lines.append(f"fallbacks: {', '.join(shown.chain[1:])}")
    if shown.restricted or shown.min_tier:
        zone = "restricted backends only" if shown.restricted else "any zone"
        lines.append(f"policies: {zone}, tier {shown.min_tier or 1} or higher")
    lines.append(f"strategy: {shown.strategy}")
    if shown.affinity:
        lines.append(
            f"affinity: session by {shown.affinity.source}, {shown.affinity.result or 'not served'}"
            f"; order: {', '.join(shown.affinity.order)}"
        )
    lines.append("")
    having = [v for v in shown.verdicts if v.out != "model_not_found"]
    rows = [
        (
            f"{v.turn}." if v.turn else "-",
            v.backend,
            v.model,
            f"{v.score:g}" if v.score is not None else "-",
            f"{v.pending}/{v.limit}" if v.limit else str(v.pending),
            state(v.circuit.replace("_", " ")),
            click.style(f"out: {v.out}", fg="yellow") if v.out else v.translation or "",
        )
        for v in sorted(having, key=lambda v: (v.turn is None, v.turn or 0))
    ]
    if rows:
        lines.append(table(("", "BACKEND", "MODEL", "SCORE", "IN FLIGHT", "CIRCUIT", ""), rows))
    without = sorted({v.backend for v in shown.verdicts} - {v.backend for v in having})
    if without:
        lines += ["", f"without the model: {', '.join(without)}"]
    if shown.refusal:
        lines += ["", f"Nothing can serve it now ({shown.refusal[0]}): {shown.refusal[1]}"]
    return "\n".join(lines)
