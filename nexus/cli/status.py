"""`nexus status`: one screen with the state of the gateway, what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from nexus.cli.backends import in_flight, status_word
from nexus.cli.gateway import Gateway, gateway_options
from nexus.cli.http_client import NoResponse, http_request
from nexus.cli.output import (
    Exit,
    Failure,
    Result,
    counted,
    duration,
    milliseconds,
    returns_result,
    safe,
    since,
    state,
    table,
)
from nexus.cli.samples import exhausted_limits, limit_text, parse, total
from nexus.cli.stats import summary
from nexus.fleet.problems import Problem, ProblemList, problem

if TYPE_CHECKING:
    from prometheus_client.samples import Sample


@click.command("status", short_help="Show the gateway's state, and what is wrong.")
@gateway_options
@returns_result
def status(gateway: Gateway) -> Result:
    """Show on one screen the gateway's state: its metrics, its backends, and what is wrong.

    It exits with 0 if nothing is wrong, with 1 if something is.
    """
    shown = gateway_status(gateway)
    exit_status = Exit.NEGATIVE if shown["problems"] else Exit.OK
    return Result(shown, lambda: _screen(shown), exit=exit_status)


def gateway_status(gateway: Gateway) -> dict[str, Any]:
    """The content of the screen. Raises `Failure` if no address responds."""
    health = gateway.get("/health").json()
    stats = gateway.get("/v1/stats").json()
    samples = parse(gateway.get("/metrics").content.decode())
    problems = [*_problems(gateway)]
    return {
        "healthy": not problems,
        "status": health["status"],
        "url": gateway.base,
        "operations_url": gateway.operations,
        "run_dir": str(gateway.run_dir.path) if gateway.run_dir else None,
        "version": health["version"],
        "uptime_seconds": stats["uptime_seconds"],
        "workers": int(total(samples, "nexus_workers") or 0),
        "requests": stats["requests"],
        "streams": stats["streams"],
        "queue": stats["queue"],
        "models": health["models"]["total"],
        "exhausted_limits": exhausted_limits(samples),
        "backends": _backends(gateway, stats["backends"], samples),
        "problems": [
            {
                "code": one.code,
                "severity": one.severity,
                "subject": one.subject,
                "what": one.text,
                "mend": one.hint,
                "since": one.since,
            }
            for one in problems
        ],
    }


def _problems(gateway: Gateway) -> Iterator[Problem]:
    """The gateway's own list, and problems that only a command can detect."""
    listed = msgspec.json.decode(gateway.get("/v1/problems").content, type=ProblemList).problems
    for fault in gateway.problems:
        hint = "correct the file; the gateway continues with its present settings"
        message = "The configuration file cannot be used"
        yield problem("configuration", "configuration", message, hint, detail=fault)
    known = {one.code for one in listed}
    for base, code, process in (
        (gateway.base, "gateway_unreachable", "No worker"),
        (gateway.operations, "health_process_down", "No health process"),
    ):
        try:
            if base and code not in known:
                http_request("GET", f"{base}/livez")
        except NoResponse as why:
            message = f"{process} responds at {base} ({why})"
            owner = gateway.run_dir.owner() if gateway.run_dir and base == gateway.base else None
            hint = f"{owner} runs; see its log" if owner else "see its log; `nexus serve` starts it"
            yield problem(code, process.lower(), message, hint)
    yield from listed


def _backends(
    gateway: Gateway, stats: list[dict[str, Any]], samples: list[Sample]
) -> list[dict[str, Any]]:
    """The backends from the operations port; from the metrics if that cannot be used."""
    try:
        backends = gateway.backends() if gateway.operations else None
    except Failure:
        backends = None
    if backends is None:
        backends = [_from_metrics(one, samples) for one in stats if one["id"] != "none"]
    by_id = {one["id"]: one for one in stats}
    for backend in backends:
        counts = by_id.get(backend["id"], {})
        backend["requests"] = counts.get("requests", 0)
        backend["trouble"] = counts.get("trouble")
        backend["average_latency_ms"] = (
            counts["average_latency_ms"] if backend["requests"] else None
        )
    return backends


def _from_metrics(stats: dict[str, Any], samples: list[Sample]) -> dict[str, Any]:
    """A backend in the form of the operations port, as far as the metrics show."""
    label = stats["id"]
    up = total(samples, "nexus_backend_up", backend=label)
    infos = (s.labels for s in samples if s.name == "nexus_backend_info")
    info = next((labels for labels in infos if labels["backend"] == label), {})
    return {
        "id": label,
        "name": stats["name"],
        "url": info.get("url"),
        "type": info.get("type"),
        "status": "unknown" if up is None else "healthy" if up else "unhealthy",
        "since": None,
        "draining": bool(total(samples, "nexus_backend_draining", backend=label)),
        "circuit": stats["circuit"],
        "in_flight": stats["pending"],
        "capacity": None,
        "latency_ms": stats["probe_latency_ms"] or None,
        "models": [],
        "dialects": [],
        "error": None,
    }


def _screen(shown: dict[str, Any]) -> str:
    problems, backends = shown["problems"], shown["backends"]
    title = click.style(f"Nexus {shown['version']}", bold=True)
    result = state("healthy", "all is well")
    if problems:
        result = state("fail", counted(len(problems), "problem"))
    pending = [{"pending": backend["in_flight"]} for backend in backends]
    lines = [
        f"{title} at {shown['url'] or shown['operations_url']}: {result}",
        f"fleet {state(shown['status'])}, {counted(shown['models'], 'model')}, "
        f"{counted(shown['workers'], 'worker')}, up {duration(shown['uptime_seconds'])}",
        summary({**shown, "backends": pending}),
    ]
    if backends:
        head = ("BACKEND", "STATUS", "CIRCUIT", "IN FLIGHT", "REQUESTS", "ON AVERAGE")
        lines += ["", table(head, [*map(_row, backends)], right=head[3:])]
    if limits := shown["exhausted_limits"]:
        lines += ["", click.style("Limits that are used up", bold=True)]
        lines += [safe(limit_text(limit)) for limit in limits]
    if problems:
        lines += ["", click.style("What is wrong", bold=True)]
    for one in problems:
        how_long = f" (for {since(one['since'])})" if one["since"] else ""
        lines.append(f"{state('fail', '!')} {safe(one['what'])}{how_long}\n    {safe(one['mend'])}")
    return "\n".join(lines)


def _row(backend: dict[str, Any]) -> tuple[str, ...]:
    return (
        backend["name"],
        status_word(backend),
        state(backend["circuit"].replace("_", " ")),
        in_flight(backend),
        f"{backend['requests']:,}",
        milliseconds(backend["average_latency_ms"]),
    )
