"""`nexus stats`: totals since the gateway was started."""

from __future__ import annotations

from typing import Any

import click

from nexus.cli.gateway import Gateway, gateway_options
from nexus.cli.output import (
    Result,
    counted,
    duration,
    milliseconds,
    returns_result,
    share,
    state,
    table,
)


@click.command("stats", short_help="Show what was counted since the start.")
@gateway_options
@returns_result
def stats(gateway: Gateway) -> Result:
    """Show totals since the gateway was started: overall, by backend and by model."""
    shown = gateway.get("/v1/stats").json()
    return Result(shown, lambda: _text(shown))


def _text(shown: dict[str, Any]) -> str:
    parts = [f"up {duration(shown['uptime_seconds'])}\n{summary(shown)}"]
    if shown["backends"]:
        rows = [
            (
                backend["name"],
                f"{backend['requests']:,}",
                milliseconds(backend["average_latency_ms"]) if backend["requests"] else "-",
                milliseconds(backend["probe_latency_ms"]) if backend["probe_latency_ms"] else "-",
                str(backend["pending"]),
                state(backend["circuit"].replace("_", " ")),
            )
            for backend in shown["backends"]
        ]
        head = ("BACKEND", "REQUESTS", "ON AVERAGE", "PROBE", "IN FLIGHT", "CIRCUIT")
        parts.append(table(head, rows, right=head[1:5]))
    if shown["models"]:
        model_rows = [
            (
                model["name"],
                f"{model['requests']:,}",
                milliseconds(model["average_duration_ms"]),
                milliseconds(model["average_ttft_ms"]),
            )
            for model in shown["models"]
        ]
        model_head = ("MODEL", "REQUESTS", "ON AVERAGE", "FIRST TOKEN")
        parts.append(table(model_head, model_rows, right=model_head[1:]))
    return "\n\n".join(parts)


def summary(shown: dict[str, Any]) -> str:
    """Requests, streams and queue of `/v1/stats` in two lines."""
    requests, streams = shown["requests"], shown["streams"]
    errors = f"{requests['errors']:,} failed ({share(requests['errors'], requests['total'])})"
    if requests["errors"]:
        errors = click.style(errors, fg="red")
    in_flight = sum(backend["pending"] for backend in shown["backends"])
    lines = [
        f"{counted(requests['total'], 'request')}, {errors}, "
        f"{in_flight} in flight, {shown['queue']['depth']} queued"
    ]
    if streams["average_ttft_ms"] is not None or streams["active"]:
        rate = streams["average_tokens_per_second"]
        speed = f", {rate:.1f} tokens/s" if rate else ""
        lines.append(
            f"{counted(streams['active'], 'stream')} now, "
            f"first token after {milliseconds(streams['average_ttft_ms'])} "
            f"on average{speed}"
        )
    return "\n".join(lines)
