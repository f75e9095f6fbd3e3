"""`nexus history`: the requests that ended last."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from nexus.cli.gateway import Gateway, find_gateway, gateway_options
from nexus.cli.output import (
    Exit,
    Failure,
    json_option,
    milliseconds,
    print_json,
    print_text,
    safe,
    state,
)

_POLL_S = 1.0
_MOST = 1000
_WIDTHS = (8, 3, 22, 16, 9, 9, 11)
_HEAD = ("ENDED", "", "MODEL", "BACKEND", "TOOK", "FIRST", "TOKENS")


@click.command("history")
@click.option(
    "-n",
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, _MOST),
    help="How many, at most.",
)
@click.option("--status", type=click.Choice(["success", "error"]), help="Only those that ended so.")
@click.option("--model", help="Only those of this model.")
@click.option("--backend", help="Only those of this backend.")
@click.option(
    "-f", "--follow", is_flag=True, help="Go on with those that end from now on, until Ctrl-C."
)
@gateway_options
@json_option
def history(
    limit: int,
    status: str | None,
    model: str | None,
    backend: str | None,
    follow: bool,
    config: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Show the requests that ended last, the newest at the end.

    --json has them newest first, as /v1/history; with --follow it is one object a line, as they come. It exits with 1
    where there is none.
    """
    gateway = find_gateway(config, url)
    filters = {"status": status, "model": model, "backend": backend}
    found = _ended(gateway, limit, filters)
    if follow:
        _follow(gateway, found, filters, as_json=as_json)
    elif as_json:
        print_json(found)
    elif found:
        print_text(click.style(_line(_HEAD), bold=True))
        for request in reversed(found):
            print_text(_shown(request))
    if not found:
        raise Failure("No such request has ended yet.", status=Exit.NEGATIVE)


def _ended(gateway: Gateway, limit: int, filters: dict[str, str | None]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.get("/v1/history", limit=limit, **filters).json()
    return found


def _follow(
    gateway: Gateway, found: list[dict[str, Any]], filters: dict[str, str | None], *, as_json: bool
) -> None:
    """Never returns; the user ends it."""
    if not as_json:
        print_text(click.style(_line(_HEAD), bold=True))
    seen: set[tuple[Any, ...]] = set()
    while True:
        for request in reversed(found):
            key = (request["id"], request["timestamp"], request["duration_ms"])
            if key not in seen:
                print_text(json.dumps(request, ensure_ascii=False) if as_json else _shown(request))
        # What the answer no longer has cannot come again.
        seen = {(request["id"], request["timestamp"], request["duration_ms"]) for request in found}
        time.sleep(_POLL_S)
        found = _ended(gateway, _MOST, filters)


def _line(cells: tuple[str, ...]) -> str:
    return "  ".join(
        f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)
    ).rstrip()


def _shown(request: dict[str, Any]) -> str:
    good = request["status"] == "Success"
    tokens = request.get("completion_tokens")
    asked, model = request.get("asked_model"), request["model"]
    cells = _line(
        (
            time.strftime("%H:%M:%S", time.localtime(request["timestamp"])),
            str(request.get("http_status") or ""),
            f"{asked} > {model}" if asked and asked != model else model,
            request["backend_id"] or "-",
            milliseconds(request["duration_ms"]),
            milliseconds(request.get("ttft_ms")),
            "-" if tokens is None else f"{request.get('prompt_tokens') or 0}+{tokens}",
        )
    )
    attempts = request.get("attempts") or []
    tried = [f"{attempt['backend']}: {attempt['outcome']}" for attempt in attempts[:-1]]
    notes = ([request["error_message"]] if request["error_message"] else []) + tried
    text = safe(cells + ("  " + "; ".join(notes) if notes else ""))
    return text if good else state("Error", text)
