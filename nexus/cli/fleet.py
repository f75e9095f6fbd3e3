"""`nexus models` and `nexus health`: what the fleet offers, and how it is."""

from __future__ import annotations

import sys
from typing import Any

import click

from nexus.cli.gateway import find_gateway, gateway_options
from nexus.cli.output import (
    Exit,
    Failure,
    counted,
    duration,
    json_option,
    print_json,
    print_text,
    state,
    table,
)


@click.command("models", short_help="Show the models, and which backends have them.")
@click.option("-b", "--backend", help="Only those of this backend.")
@gateway_options
@json_option
def models(backend: str | None, config: str | None, url: str | None, as_json: bool) -> None:
    """Show the models that can be asked for, and which backends have them.

    It exits with 1 where there is none.
    """
    listed: list[dict[str, Any]] = []
    for entry in find_gateway(config, url).get("/v1/models").json()["data"]:
        if backend is None or backend in entry["backends"]:
            known = {
                key: entry.get(key) for key in ("backends", "alias_of", "context_length", "tasks")
            }
            listed.append(
                {"name": entry["id"], **known, "capabilities": entry.get("capabilities", {})}
            )
    listed.sort(key=lambda model: str(model["name"]))
    if as_json:
        print_json({"models": listed})
    elif listed:
        rows = [
            (
                m["name"],
                f"{m['context_length']:,}" if m["context_length"] else "-",
                ", ".join(
                    [word for word, can in m["capabilities"].items() if can] + (m["tasks"] or [])
                )
                or "-",
                ", ".join(m["backends"]) + (f" (as {m['alias_of']})" if m["alias_of"] else ""),
            )
            for m in listed
        ]
        print_text(table(("MODEL", "CONTEXT", "CAN", "BACKENDS"), rows, right=("CONTEXT",)))
    if not listed:
        where = (
            f"The backend {backend} offers" if backend else "No backend that takes requests offers"
        )
        raise Failure(
            f"{where} no model now; `nexus status` says how the backends are.", status=Exit.NEGATIVE
        )


@click.command("health", short_help="Say how the fleet is.")
@gateway_options
@json_option
def health(config: str | None, url: str | None, as_json: bool) -> None:
    """Say how the fleet is: healthy (exit status 0), degraded or unhealthy (1)."""
    found = find_gateway(config, url).get("/health").json()
    if as_json:
        print_json(found)
    else:
        backends = found["backends"]
        print_text(
            f"{state(found['status'])}: {backends['healthy']} of {counted(backends['total'], 'backend')} healthy, "
            f"{counted(found['models']['total'], 'model')}, up {duration(found['uptime_seconds'])}, "
            f"version {found['version']}"
        )
    sys.exit(Exit.OK if found["status"] == "healthy" else Exit.NEGATIVE)
