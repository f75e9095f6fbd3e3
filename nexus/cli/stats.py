"""`nexus stats`: the figures of the gateway's whole run."""

from __future__ import annotations

from typing import Any

import click

from nexus.cli.gateway import find_gateway, gateway_options
from nexus.cli.output import (
    counted,
    duration,
    json_option,
    milliseconds,
    print_json,
    print_text,
    share,
    state,
    table,
)


@click.command("stats", short_help="Show what was counted since the start.")
@gateway_options
@json_option
def stats(config: str | None, url: str | None, as_json: bool) -> None:
    """Show what was counted since the gateway was started, in all, by backend and by model."""
    found = find_gateway(config, url).get("/v1/stats").json()
    if as_json:
        print_json(found)
        return
    print_text(f"up {duration(found['uptime_seconds'])}")
    print_text(summary(found))
    if found["backends"]:
        rows = [
            (
                backend["name"],
                f"{backend['requests']:,}",
                milliseconds(backend["average_latency_ms"]) if backend["requests"] else "-",
                milliseconds(backend["probe_latency_ms"]) if backend["probe_latency_ms"] else "-",
                str(backend["pending"]),
                state(backend["circuit"].replace("_", " ")),
            )
            for backend in found["backends"]
        ]
        head = ("BACKEND", "REQUESTS", "ON AVERAGE", "PROBE", "IN FLIGHT", "CIRCUIT")
        print_text("\n" + table(head, rows, right=head[1:5]))
    if found["models"]:
        rows_of_models = [
            (
                model["name"],
                f"{model['requests']:,}",
                milliseconds(model["average_duration_ms"]),
                milliseconds(model["average_ttft_ms"]),
            )
            for model in found["models"]
        ]
        head_of_models = ("MODEL", "REQUESTS", "ON AVERAGE", "FIRST TOKEN")
        print_text("\n" + table(head_of_models, rows_of_models, right=head_of_models[1:]))


def summary(found: dict[str, Any]) -> str:
    """Requests, streams and queue of `/v1/stats` in two lines."""
    requests, streams = found["requests"], found["streams"]
    errors = f"{requests['errors']:,} failed ({share(requests['errors'], requests['total'])})"
    in_flight = sum(backend["pending"] for backend in found["backends"])
    lines = [
        f"{counted(requests['total'], 'request')}, {click.style(errors, fg='red') if requests['errors'] else errors}, "
        f"{in_flight} in flight, {found['queue']['depth']} queued"
    ]
    if streams["average_ttft_ms"] is not None or streams["active"]:
        rate = streams["average_tokens_per_second"]
        speed = f", {rate:.1f} tokens/s" if rate else ""
        lines.append(
            f"{counted(streams['active'], 'stream')} now, first token after {milliseconds(streams['average_ttft_ms'])} "
            f"on average{speed}"
        )
    return "\n".join(lines)
