"""`nexus backends`: the running gateway's backends, and changes to them."""

from __future__ import annotations

import re
import time
import tomllib
from typing import Any, get_args

import click

from nexus.cli.gateway import Command, Gateway, admin_options, path_part
from nexus.cli.output import (
    Exit,
    Failure,
    Result,
    milliseconds,
    returns_result,
    since,
    state,
    table,
)
from nexus.config.fields import BackendType, Zone
from nexus.fleet.records import Status
from nexus.runtime.text import suggest

_POLL_INTERVAL_S = 0.1
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s/:]+):\d+(/\S*)?$")


@click.group("backends")
def backends() -> None:
    """The running gateway's backends, and changes to them.

    Changes take effect at the next request; requests in flight continue. They are lost when the
    gateway stops. With --save they are also written to a file beside the configuration, which
    itself is never changed.
    """


def _save_option(command: Command) -> Command:
    return click.option(
        "--save", is_flag=True, help="Keep it over restarts, in a file beside the configuration."
    )(command)


@backends.command("list")
@click.option(
    "-s",
    "--status",
    type=click.Choice(get_args(Status), case_sensitive=False),
    help="Only those of this status.",
)
@admin_options
@returns_result
def list_(status: str | None, gateway: Gateway) -> Result:
    """Show every backend: its state, what it serves, how busy it is.

    It exits with 1 if there is none.
    """
    everything = gateway.backends()
    shown = [backend for backend in everything if status in (None, backend["status"])]
    if shown:
        return Result({"backends": shown}, lambda: backend_table(shown))
    message = "There is no backend; add one with `nexus backends add URL`."
    if everything:
        message = f"No backend is {status}; there are {len(everything)} of another status."
    return Result({"backends": []}, failure=Failure(message, status=Exit.NEGATIVE))


def backend_table(shown: list[dict[str, Any]]) -> str:
    rows = [
        (
            backend["name"],
            backend["type"],
            backend["url"],
            status_word(backend),
            since(backend["since"]) if backend["since"] else "-",
            state(backend["circuit"].replace("_", " ")),
            in_flight(backend),
            milliseconds(backend["latency_ms"]),
            str(len(backend["models"])),
            "" if backend["origin"] == "file" else backend["origin"],
            backend["error"] or "",
        )
        for backend in shown
    ]
    head = "NAME TYPE URL STATUS FOR CIRCUIT IN_FLIGHT PROBE MODELS ORIGIN ERROR"
    columns = [name.replace("_", " ") for name in head.split()]
    return table(columns, rows, right=("FOR", "IN FLIGHT", "PROBE", "MODELS"))


def status_word(backend: dict[str, Any]) -> str:
    shown = state(backend["status"])
    return f"{shown}, {state('draining')}" if backend["draining"] else shown


def in_flight(backend: dict[str, Any]) -> str:
    """Its requests in flight, and how many it takes if that is known."""
    count, capacity = backend["in_flight"], backend["capacity"]
    return f"{count}/{capacity}" if capacity else str(count)


def _setting(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """`KEY=VALUE` options as a table; a value that is not TOML is text."""
    settings: dict[str, Any] = {}
    for item in given:
        key, is_pair, value = item.partition("=")
        if not is_pair:
            raise click.BadParameter(f"{item!r} is not KEY=VALUE.")
        try:
            settings[key] = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            settings[key] = value
    return settings


@backends.command("add")
@click.argument("address", metavar="URL")
@click.option("-n", "--name", help="Its name [host and port of the URL].")
@click.option(
    "-t",
    "--type",
    "--backend-type",
    "kind",
    type=click.Choice(get_args(BackendType), case_sensitive=False),
    help="What kind of server it is [detected, else generic].",
)
@click.option("-p", "--priority", type=int, help="Lower is preferred [50].")
@click.option("--zone", type=click.Choice(get_args(Zone)), help="Its privacy zone [by its kind].")
@click.option("--tier", type=int, help="Its capability tier, 1 to 5 [1].")
@click.option(
    "--max-concurrent", type=int, help="Requests in flight that it takes [as it reports]."
)
@click.option(
    "--api-key-env",
    metavar="NAME",
    help="Variable of the health process and workers that holds its key.",
)
@click.option(
    "--set",
    "more",
    multiple=True,
    callback=_setting,
    metavar="KEY=VALUE",
    help="Any other key of a backend.",
)
@_save_option
@admin_options
@returns_result
def add(
    address: str,
    name: str | None,
    more: dict[str, Any],
    save: bool,
    gateway: Gateway,
    **given: Any,
) -> Result:
    """Add a backend to the running gateway.

    It is probed at once, and gets requests when a probe succeeds.
    """
    if "://" not in address and not _HOST_AND_PORT.match(address):
        raise Failure(f"{address} is not an address; it takes http://HOST:PORT.", status=Exit.USAGE)
    address = address if "://" in address else f"http://{address}"
    settings = {"type": given.pop("kind"), **given, **more}
    body = {"name": name or address.partition("://")[2].split("/")[0], "url": address, "save": save}
    body |= {key: value for key, value in settings.items() if value is not None}
    added = gateway.admin("POST", "backends", body)
    who = f"{added['name']} ({added['type']})"
    return Result(added, f"Added {who}{_kept(save)}; it gets requests once a probe succeeds.")


@backends.command("remove")
@click.argument("name")
@_save_option
@admin_options
@returns_result
def remove(name: str, save: bool, gateway: Gateway) -> Result:
    """Remove a backend from the running gateway. Its requests in flight continue."""
    real_name = _named(gateway, name)["name"]
    path = f"backends/{path_part(real_name)}{'?save=1' if save else ''}"
    removed = gateway.admin("DELETE", path)
    return Result(removed, f"Removed {real_name}{_kept(save)}.")


@backends.command("drain", short_help="Give a backend no new requests.")
@click.argument("name")
@click.option(
    "--wait",
    "wait_s",
    type=float,
    metavar="SECONDS",
    help="Wait so long for its last request to end.",
)
@_save_option
@admin_options
@returns_result
def drain(name: str, wait_s: float | None, save: bool, gateway: Gateway) -> Result:
    """Give a backend no new requests.

    It is still probed, and its requests in flight continue.

    With --wait it exits with 1 if some are still in flight after that time.
    """
    backend = _set_draining(gateway, name, on=True, save=save)
    deadline = time.monotonic() + (wait_s or 0)
    while backend["in_flight"] and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL_S)
        backend = _named(gateway, backend["name"])
    who, count, failure = backend["name"], backend["in_flight"], None
    if count and wait_s is not None:
        message = f"{who} still has {count} in flight after {wait_s:g} s."
        failure = Failure(message, status=Exit.NEGATIVE)
    text = f"{who} gets no new requests{_kept(save)}; {count} in flight."
    return Result(backend, text, failure=failure)


@backends.command("undrain")
@click.argument("name")
@_save_option
@admin_options
@returns_result
def undrain(name: str, save: bool, gateway: Gateway) -> Result:
    """Give a drained backend requests again."""
    backend = _set_draining(gateway, name, on=False, save=save)
    text = f"{backend['name']} gets requests again{_kept(save)}; it is {backend['status']}."
    return Result(backend, text)


def _set_draining(gateway: Gateway, name: str, *, on: bool, save: bool) -> dict[str, Any]:
    path = f"backends/{path_part(_named(gateway, name)['name'])}/{'drain' if on else 'undrain'}"
    backend: dict[str, Any] = gateway.admin("POST", path, {"save": save})
    return backend


def _named(gateway: Gateway, name: str) -> dict[str, Any]:
    """The backend of this name, or of this id (its label in metrics)."""
    listed = gateway.backends()
    for key in ("name", "id"):
        for backend in listed:
            if backend[key] == name:
                return backend
    names = [backend["name"] for backend in listed]
    hint = suggest(name, names) or f"there are {', '.join(names) or 'none'}."
    raise Failure(f"There is no backend {name}; {hint}", status=Exit.NEGATIVE)


def _kept(save: bool) -> str:
    return ", saved" if save else " until the gateway restarts"
