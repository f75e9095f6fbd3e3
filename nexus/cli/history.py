"""`nexus history`: the last requests."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from nexus.cli.gateway import Gateway, gateway_options
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

_POLL_INTERVAL_S = 1.0
_MAX = 1000
_WIDTHS = (8, 3, 22, 16, 9, 9, 11)
_HEAD = ("ENDED", "", "MODEL", "BACKEND", "TOOK", "FIRST", "TOKENS")


@click.command("history")
@click.option(
    "-n",
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, _MAX),
    help="How many, at most.",
)
@click.option(
    "--status", type=click.Choice(["success", "error"]), help="Only those with this result."
)
@click.option("--model", help="Only those of this model.")
@click.option("--backend", help="Only those of this backend.")
@click.option(
    "-f", "--follow", is_flag=True, help="Then show further requests as they end, until Ctrl-C."
)
@gateway_options
@json_option
def history(
    limit: int, follow: bool, gateway: Gateway, as_json: bool, **filters: str | None
) -> None:
    """Show the last requests, the newest at the end.

    --json lists them newest first, as /v1/history does. With --follow it prints one object a line.
    It exits with 1 if there is none.
    """
    requests = _ended(gateway, limit, filters)
    if follow:
        _follow(gateway, requests, filters, as_json=as_json)
    elif as_json:
        print_json(requests)
    elif requests:
        print_text(click.style(_line(_HEAD), bold=True))
        for request in reversed(requests):
            print_text(_shown(request))
    if not requests:
        raise Failure("No such request has ended yet.", status=Exit.NEGATIVE)


def _ended(gateway: Gateway, limit: int, filters: dict[str, str | None]) -> list[dict[str, Any]]:
    requests: list[dict[str, Any]] = gateway.get("/v1/history", limit=limit, **filters).json()
    return requests


def _follow(
    gateway: Gateway,
    requests: list[dict[str, Any]],
    filters: dict[str, str | None],
    *,
    as_json: bool,
) -> None:
    """Print requests as they end, until the user stops it."""
    if not as_json:
        print_text(click.style(_line(_HEAD), bold=True))
    seen: set[tuple[Any, ...]] = set()
    while True:
        for request in reversed(requests):
            if _key(request) not in seen:
                print_text(json.dumps(request, ensure_ascii=False) if as_json else _shown(request))
        # A request that is no longer listed cannot be listed again.
        seen = {_key(request) for request in requests}
        time.sleep(_POLL_INTERVAL_S)
        requests = _ended(gateway, _MAX, filters)


def _key(request: dict[str, Any]) -> tuple[Any, ...]:
    return request["id"], request["timestamp"], request["duration_ms"]


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
