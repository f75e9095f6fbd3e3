"""`nexus models` and `nexus health`: what the fleet offers, and its health."""

from __future__ import annotations

from typing import Any

import click

from nexus.cli.gateway import Gateway, gateway_options
from nexus.cli.output import Exit, Failure, Result, counted, duration, returns_result, state, table


@click.command("models", short_help="Show the models, and which backends have them.")
@click.option("-b", "--backend", help="Only those of this backend.")
@gateway_options
@returns_result
def models(backend: str | None, gateway: Gateway) -> Result:
    """Show the models that clients can request, and which backends have them.

    It exits with 1 if there is none.
    """
    shown = [
        {
            "name": entry["id"],
            **{key: entry.get(key) for key in ("backends", "alias_of", "context_length", "tasks")},
            "capabilities": entry.get("capabilities", {}),
        }
        for entry in gateway.get("/v1/models").json()["data"]
        if backend is None or backend in entry["backends"]
    ]
    shown.sort(key=lambda model: str(model["name"]))
    if shown:
        return Result({"models": shown}, lambda: _table(shown))
    who = f"The backend {backend} offers" if backend else "No backend that takes requests offers"
    message = f"{who} no model now; `nexus status` shows the backends."
    return Result({"models": []}, failure=Failure(message, status=Exit.NEGATIVE))


def _table(models: list[dict[str, Any]]) -> str:
    rows = []
    for model in models:
        able = [word for word, can in model["capabilities"].items() if can] + (model["tasks"] or [])
        alias = f" (as {model['alias_of']})" if model["alias_of"] else ""
        context = f"{model['context_length']:,}" if model["context_length"] else "-"
        rows.append(
            (model["name"], context, ", ".join(able) or "-", ", ".join(model["backends"]) + alias)
        )
    return table(("MODEL", "CONTEXT", "CAN", "BACKENDS"), rows, right=("CONTEXT",))


@click.command("health", short_help="Show the health of the fleet.")
@gateway_options
@returns_result
def health(gateway: Gateway) -> Result:
    """Show the health of the fleet: healthy (exit status 0), degraded or unhealthy (1)."""
    shown = gateway.get("/health").json()
    backends, models = shown["backends"], counted(shown["models"]["total"], "model")
    text = (
        f"{state(shown['status'])}: {backends['healthy']} of "
        f"{counted(backends['total'], 'backend')} healthy, {models}, "
        f"up {duration(shown['uptime_seconds'])}, version {shown['version']}"
    )
    healthy = shown["status"] == "healthy"
    return Result(shown, text, exit=Exit.OK if healthy else Exit.NEGATIVE)
