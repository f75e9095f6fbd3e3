"""What `nexus route explain` says of a gateway that runs, read from its run directory."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import msgspec

from nexus.cli.gateway import run_directory
from nexus.cli.output import Exit, Failure, print_text, state, table
from nexus.config import ConfigError
from nexus.dialects.base import InvalidBody, ParsedRequest
from nexus.dialects.json_body import read_fields
from nexus.fleet.circuits import CircuitTable
from nexus.fleet.load_table import LoadTable
from nexus.fleet.prefix_table import PrefixTable
from nexus.fleet.snapshot import SnapshotReader
from nexus.fleet.status import status_of
from nexus.http.headers import RequestHeaders
from nexus.proxy.endpoints import ENDPOINTS
from nexus.proxy.session import OVERRIDE, SessionReader
from nexus.routing.context import Conditions, RouteQuery
from nexus.routing.explain import Explanation, explain
from nexus.routing.table import RouteTable


def route_explain(
    config: str | None,
    model: str,
    *,
    body: str | None,
    session: str | None,
    key: str,
    flexible: bool,
    as_json: bool,
) -> int:
    """Show what the router would do. Exit status 1 where nothing can serve."""
    run_dir = run_directory(config)
    snapshot, generation = (
        SnapshotReader(run_dir.path).read() if run_dir.path.is_dir() else None,
        run_dir.current(),
    )
    if snapshot is None or generation is None:
        raise Failure(
            f"No gateway has run in {run_dir.path}; name its configuration with -c.",
            status=Exit.UNREACHABLE,
        )
    routes, load_table, circuits = (
        RouteTable(snapshot),
        LoadTable(generation.load),
        CircuitTable(generation.circuits),
    )
    resolved = routes.resolve(model)
    parsed = _parsed(body) if body else ParsedRequest(model=model)
    scope = key if routes.affinity.scope == "key" else ""
    headers = RequestHeaders.of([(OVERRIDE, session)] if session else [])
    asked = RouteQuery(
        model=resolved,
        needs=parsed.needs,
        constraints=routes.constraints(model, resolved),
        flexible=flexible,
        session=SessionReader(headers, parsed, routes.affinity, resolved, scope),
    )
    now_ns = time.monotonic_ns()
    found = explain(
        routes,
        asked,
        Conditions(
            load=load_table.pending,
            holders=PrefixTable(generation.prefixes).holders,
            status=lambda column, model: status_of(
                column, model, circuits, load_table, config=snapshot.config, now_ns=now_ns
            ),
        ),
        name=model,
    )
    if as_json:
        print_text(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        print_text(_shown(found))
    return 1 if found.refusal else 0


def _parsed(file: str) -> ParsedRequest:
    """A request body, as far as routing reads it."""
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        fields = read_fields(content)
        endpoint = ENDPOINTS.for_fields(fields)
        if "model" not in fields:
            content = endpoint.dialect.replace_model(content, "any")
        return endpoint.dialect.parse_request(content, endpoint.form)
    except OSError as error:
        raise ConfigError([f"{file}: it cannot be read ({error.strerror})."]) from error
    except InvalidBody as error:
        raise ConfigError([f"{file}: this is not a request ({error})."]) from error


def _shown(found: Explanation) -> str:
    lines = [
        f"{found.asked}"
        + (f" is an alias of {found.resolved}" if found.resolved != found.asked else "")
    ]
    if len(found.chain) > 1:
        lines.append(f"fallbacks: {', '.join(found.chain[1:])}")
    if found.restricted or found.min_tier:
        zone = "restricted backends only" if found.restricted else "any zone"
        lines.append(f"policies: {zone}, tier {found.min_tier or 1} or higher")
    lines.append(f"strategy: {found.strategy}")
    if found.affinity:
        lines.append(
            f"affinity: session by {found.affinity.source}, {found.affinity.result or 'not served'}"
            f"; order: {', '.join(found.affinity.order)}"
        )
    lines.append("")
    rows = []
    ordered = sorted(found.verdicts, key=lambda v: (v.turn is None, v.turn or 0))
    for v in ordered:
        if v.out == "model_not_found":
            continue
        rows.append(
            (
                f"{v.turn}." if v.turn else "-",
                v.backend,
                v.model,
                f"{v.score:g}" if v.score is not None else "-",
                f"{v.pending}/{v.limit}" if v.limit else str(v.pending),
                state(v.circuit.replace("_", " ")),
                click.style(f"out: {v.out}", fg="yellow") if v.out else "",
            )
        )
    if rows:
        lines.append(table(("", "BACKEND", "MODEL", "SCORE", "IN FLIGHT", "CIRCUIT", ""), rows))
    without = sorted(
        {v.backend for v in found.verdicts}
        - {v.backend for v in found.verdicts if v.out != "model_not_found"}
    )
    if without:
        lines += ["", f"without the model: {', '.join(without)}"]
    if found.refusal:
        lines += ["", f"Nothing can serve it now ({found.refusal[0]}): {found.refusal[1]}"]
    return "\n".join(lines)
