"""`nexus reload` and `nexus route explain`: what an operator asks of a gateway that runs, through its run directory."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import click
import msgspec

from nexus.config import ConfigError, load
from nexus.config.loading import run_dir_of_broken
from nexus.fleet.circuits import CircuitTable
from nexus.fleet.load import LoadTable
from nexus.fleet.reloads import last_reload
from nexus.fleet.rundir import RunDirectory
from nexus.fleet.snapshot import SnapshotReader
from nexus.proxy.breakers import standing_of
from nexus.routing.explain import Explanation, explain
from nexus.routing.requirements import ANYTHING, InvalidBody, Requirements, read
from nexus.routing.router import Asked, Conditions
from nexus.routing.table import RouteTable

_PATIENCE_S = 15.0


def run_directory(config: str | None, given: str | None = None) -> RunDirectory:
    """The directory of the gateway that a configuration describes, also where that cannot be used just now."""
    if given:
        return RunDirectory(given)
    try:
        return RunDirectory.of(load(config).config)
    except ConfigError:
        return RunDirectory.of(run_dir_of_broken(config, os.environ))


def reload(config: str | None, *, run_dir_given: str | None, as_json: bool) -> int:
    """Have the running gateway read its configuration again. Exit status 2 where it is refused, 1 without a gateway."""
    run_dir = run_directory(config, run_dir_given)
    pid = run_dir.health_process_pid()
    if pid is None:
        load(config)  # says what is wrong with the file, where that is why nothing was found
        click.echo(
            f"No health process runs for {run_dir.path}; name the gateway's configuration with -c, "
            "or, where its port or run directory has changed in there, the old one with --run-dir.",
            err=True,
        )
        return 1
    before = last_reload(run_dir.path).count
    os.kill(pid, signal.SIGHUP)
    deadline = time.monotonic() + _PATIENCE_S
    while (outcome := last_reload(run_dir.path)).count == before:
        if time.monotonic() > deadline:
            click.echo(f"The health process (pid {pid}) did not say within {_PATIENCE_S:.0f} s how it went.", err=True)
            return 1
        time.sleep(0.02)
    if as_json:
        click.echo(msgspec.json.encode({"reloaded": not outcome.problems, **msgspec.to_builtins(outcome)}).decode())
    for warning in outcome.warnings:
        click.echo(f"warning: {warning}", err=True)
    if outcome.problems:
        click.echo("\n".join([*outcome.problems, "Nothing was changed; the gateway goes on as before."]), err=True)
        return 2
    if not as_json:
        click.echo(f"Reloaded: {outcome.backends} backend{'' if outcome.backends == 1 else 's'}.")
        if outcome.restart:
            click.echo(f"These take effect when the gateway is started again: {', '.join(outcome.restart)}.")
    return 0


def route_explain(config: str | None, model: str, *, body: str | None, flexible: bool, as_json: bool) -> int:
    """Show what the router would do. Exit status 1 where nothing can serve, or no gateway has run."""
    run_dir = run_directory(config)
    snapshot, generation = SnapshotReader(run_dir.path).read() if run_dir.path.is_dir() else None, run_dir.current()
    if snapshot is None or generation is None:
        click.echo(f"No gateway has run in {run_dir.path}; name its configuration with -c.", err=True)
        return 1
    table, load_table, circuits = RouteTable(snapshot), LoadTable(generation.load), CircuitTable(generation.circuits)
    resolved = table.resolve(model)
    asked = Asked(
        model=resolved,
        needs=_needs(body) if body else ANYTHING,
        demands=table.demands(model, resolved),
        flexible=flexible,
    )
    now_ns = time.monotonic_ns()
    found = explain(
        table,
        asked,
        Conditions(
            load=load_table.pending,
            standing=lambda column: standing_of(column, circuits, load_table, config=snapshot.config, now_ns=now_ns),
        ),
        name=model,
    )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        click.echo(_shown(found))
    return 1 if found.refusal else 0


def _needs(file: str) -> Requirements:
    """What a request body asks of the model."""
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        required = next((name for name in ("messages", "prompt", "input") if name in fields), "messages")
        fields.setdefault("model", msgspec.Raw(b'"any"'))
        return read(msgspec.json.encode(fields), required).needs
    except OSError as error:
        raise ConfigError([f"{file}: it cannot be read ({error.strerror})."]) from error
    except (msgspec.DecodeError, InvalidBody) as error:
        raise ConfigError([f"{file}: this is not a request ({error})."]) from error


def _shown(found: Explanation) -> str:
    lines = [f"{found.asked}" + (f" is an alias of {found.resolved}" if found.resolved != found.asked else "")]
    if len(found.chain) > 1:
        lines.append(f"fallbacks: {', '.join(found.chain[1:])}")
    if found.restricted or found.min_tier:
        zone = "restricted backends only" if found.restricted else "any zone"
        lines.append(f"policies: {zone}, tier {found.min_tier or 1} or higher")
    lines += [f"strategy: {found.strategy}", ""]
    rows = [("", "BACKEND", "MODEL", "SCORE", "IN FLIGHT", "CIRCUIT", "")]
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
                v.circuit.replace("_", " "),
                f"out: {v.out}" if v.out else "",
            )
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    without = sorted(
        {v.backend for v in found.verdicts} - {v.backend for v in found.verdicts if v.out != "model_not_found"}
    )
    if without:
        lines += ["", f"without the model: {', '.join(without)}"]
    if found.refusal:
        lines += ["", f"Nothing can serve it now ({found.refusal[0]}): {found.refusal[1]}"]
    return "\n".join(lines)
