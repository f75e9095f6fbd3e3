"""`nexus status`: one screen that says whether all is well, and if not, what is wrong and how to mend it."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

import click

from nexus.cli.gateway import Gateway, NoResponse, find_gateway, gateway_options, http_request
from nexus.cli.output import (
    Exit,
    Failure,
    counted,
    duration,
    json_option,
    milliseconds,
    print_json,
    print_text,
    safe,
    since,
    state,
    table,
)
from nexus.cli.samples import Sample, parse, total
from nexus.cli.stats import summary

TROUBLES = {
    "hangs": "is healthy by its probes, but served nothing in ten minutes: clients left, or time limits ended",
    "refuses_all": "is healthy by its probes, but refused every request in ten minutes with a 4xx",
}


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, and what to do about it."""

    what: str
    mend: str


@click.command("status", short_help="Show how the gateway is, and what is wrong.")
@gateway_options
@json_option
def status(config: str | None, url: str | None, as_json: bool) -> None:
    """Show on one screen how the gateway is: its figures, its backends, and what is wrong.

    It exits with 0 where nothing is wrong, with 1 where something is.
    """
    gateway = find_gateway(config, url)
    found = look(gateway)
    if as_json:
        print_json(found)
    else:
        print_text(screen(found))
    sys.exit(Exit.NEGATIVE if found["problems"] else Exit.OK)


def look(gateway: Gateway) -> dict[str, Any]:
    """Everything that the screen shows. Raises `Failure` where nothing answers."""
    health = gateway.get("/health").json()
    stats = gateway.get("/v1/stats").json()
    samples = parse(gateway.get("/metrics").content.decode())
    backends, names = _backends(gateway), {b["id"]: b for b in stats["backends"]}
    if backends is None:
        backends = [
            _seen_in_figures(backend, samples)
            for backend in stats["backends"]
            if backend["id"] != "none"
        ]
    for backend in backends:
        figures = names.get(backend["id"])
        backend["requests"] = figures["requests"] if figures else 0
        backend["trouble"] = figures.get("trouble") if figures else None
        backend["average_latency_ms"] = (
            figures["average_latency_ms"] if backend["requests"] and figures else None
        )
    problems = [*_unanswered(gateway), *_in_figures(gateway, samples), *_in_backends(backends)]
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
        "backends": backends,
        "problems": [asdict(problem) for problem in problems],
    }


def _backends(gateway: Gateway) -> list[dict[str, Any]] | None:
    """The backends as operators see them; None where they cannot be asked."""
    try:
        return gateway.backends() if gateway.operations else None
    except Failure:
        return None


def _seen_in_figures(backend: dict[str, Any], samples: list[Sample]) -> dict[str, Any]:
    """A backend as everybody may see it, in the same form as far as that goes."""
    label = backend["id"]
    up = total(samples, "nexus_backend_up", backend=label)
    info = next(
        (
            s.labels
            for s in samples
            if s.name == "nexus_backend_info" and s.labels["backend"] == label
        ),
        {},
    )
    return {
        "id": label,
        "name": backend["name"],
        "url": info.get("url"),
        "type": info.get("type"),
        "status": "unknown" if up is None else "healthy" if up else "unhealthy",
        "since": None,
        "draining": bool(total(samples, "nexus_backend_draining", backend=label)),
        "circuit": backend["circuit"],
        "in_flight": backend["pending"],
        "capacity": None,
        "latency_ms": backend["probe_latency_ms"] or None,
        "models": [],
        "error": None,
    }


def _unanswered(gateway: Gateway) -> list[Problem]:
    """Which of the addresses do not answer, since one of them did."""
    problems = []
    for base, what, mend in (
        (gateway.base, "No worker answers", "see the gateway's log; `nexus serve` starts it"),
        (
            gateway.operations,
            "The health process does not answer",
            "see its log; `nexus serve` starts it again",
        ),
    ):
        try:
            if base:
                http_request("GET", f"{base}/livez")
        except NoResponse as why:
            problems.append(Problem(f"{what} at {base} ({why}).", mend))
    return problems


def _in_figures(gateway: Gateway, samples: list[Sample]) -> list[Problem]:
    """What the gateway's own gauges tell of it."""
    problems = [
        Problem(problem, "mend the file; the gateway goes on without it")
        for problem in gateway.problems
    ]

    def gauge(name: str) -> float:
        return total(samples, name) or 0.0

    if total(samples, "nexus_health_process_up") == 0:
        problems.append(
            Problem("No health process runs; nobody probes the backends.", "start it: see its log")
        )
    if total(samples, "nexus_config_last_reload_successful") == 0:
        problems.append(
            Problem(
                f"The last reload was refused{_why_refused(gateway)}.",
                "`nexus config check` says why",
            )
        )
    if gauge("nexus_accounting_imbalance"):
        problems.append(
            Problem(
                f"The figures do not add up: nexus_accounting_imbalance is {gauge('nexus_accounting_imbalance'):g}.",
                "if it stays, that is a defect in Nexus; please report it with the log of the time",
            )
        )
    if total(samples, "nexus_run_directory_usable") == 0:
        problems.append(
            Problem("The run directory is gone or full.", "make space, or start the gateway anew")
        )
    for name, what in (
        (
            "nexus_metrics_write_errors_total",
            "series found no space and are counted in one process alone",
        ),
        ("nexus_metrics_damaged_files_total", "metrics files were damaged and set aside"),
        (
            "nexus_labels_overflowed",
            "names are over [metrics] max_models or max_backends and share `other`",
        ),
    ):
        if gauge(name):
            problems.append(
                Problem(
                    f"{gauge(name):g} {what}.", f"`nexus metrics get {name}` and the log say more"
                )
            )
    configured = _workers_at_start(gateway)
    if 0 < gauge("nexus_workers") < configured:
        problems.append(
            Problem(
                f"{gauge('nexus_workers'):g} of {configured} workers run.",
                "see the gateway's log for the others",
            )
        )
    return problems


def _why_refused(gateway: Gateway) -> str:
    if gateway.run_dir is None:
        return ""
    from nexus.fleet.reload_report import last_reload

    problems = last_reload(gateway.run_dir.path).problems
    return f": {problems[0].rstrip('.')}" if problems else ""


def _workers_at_start(gateway: Gateway) -> int:
    generation = gateway.run_dir.current() if gateway.run_dir else None
    try:
        return generation.started().workers if generation else 0
    except (OSError, ValueError):
        return 0


def _in_backends(backends: list[dict[str, Any]]) -> list[Problem]:
    if not backends:
        return [
            Problem(
                "There is no backend.", "add one: `nexus backends add URL`, or in the configuration"
            )
        ]
    problems = []
    for backend in backends:
        name = backend["name"]
        if backend["status"] == "unhealthy":
            how_long = f" for {since(backend['since'])}" if backend["since"] else ""
            why = f": {backend['error']}" if backend["error"] else ""
            problems.append(
                Problem(f"{name} is unhealthy{how_long}{why}.", "`nexus doctor` looks closer")
            )
        elif backend["circuit"] != "closed":
            word = backend["circuit"].replace("_", " ")
            problems.append(
                Problem(
                    f"The circuit of {name} is {word}: requests to it fail.",
                    f"`nexus history --backend {name}`",
                )
            )
        elif (
            backend["error"] and not backend["models"]
        ):  # without health checks it counts as healthy
            problems.append(
                Problem(f"{name} has no models: {backend['error']}.", "`nexus doctor` looks closer")
            )
        elif backend["trouble"]:
            problems.append(
                Problem(
                    f"{name} {TROUBLES[backend['trouble']]}.", f"`nexus history --backend {name}`"
                )
            )
    if all(backend["draining"] or backend["status"] != "healthy" for backend in backends):
        problems.append(
            Problem("No backend takes requests.", "`nexus backends list` shows which are drained")
        )
    return problems


def screen(found: dict[str, Any]) -> str:
    where = found["url"] or found["operations_url"]
    problems = found["problems"]
    shown = (
        state("healthy", "all is well")
        if not problems
        else state("fail", counted(len(problems), "problem"))
    )
    lines = [
        f"{click.style('Nexus ' + found['version'], bold=True)} at {where}: {shown}",
        f"fleet {state(found['status'])}, {counted(found['models'], 'model')}, "
        f"{counted(found['workers'], 'worker')}, up {duration(found['uptime_seconds'])}",
        summary(
            {
                **found,
                "backends": [{"pending": backend["in_flight"]} for backend in found["backends"]],
            }
        ),
    ]
    rows = [
        (
            backend["name"],
            state(backend["status"]) + (f", {state('draining')}" if backend["draining"] else ""),
            state(backend["circuit"].replace("_", " ")),
            f"{backend['in_flight']}/{backend['capacity']}"
            if backend["capacity"]
            else str(backend["in_flight"]),
            f"{backend['requests']:,}",
            milliseconds(backend["average_latency_ms"]),
        )
        for backend in found["backends"]
    ]
    if rows:
        head = ("BACKEND", "STATUS", "CIRCUIT", "IN FLIGHT", "REQUESTS", "ON AVERAGE")
        lines += ["", table(head, rows, right=("IN FLIGHT", "REQUESTS", "ON AVERAGE"))]
    if problems:
        lines += ["", click.style("What is wrong", bold=True)]
        lines += [
            f"{state('fail', '!')} {safe(problem['what'])}\n    {safe(problem['mend'])}"
            for problem in problems
        ]
    return "\n".join(lines)
