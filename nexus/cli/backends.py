"""`nexus backends`: the running gateway's backends, and changes to them."""

from __future__ import annotations

import difflib
import re
import time
import tomllib
from typing import Any, get_args

import click

from nexus.cli.gateway import Command, Gateway, admin_options, find_admin, path_part
from nexus.cli.output import (
    Exit,
    Failure,
    json_option,
    milliseconds,
    print_json,
    print_text,
    since,
    state,
    table,
)
from nexus.config.records import BackendType, Zone
from nexus.fleet.records import Status

_POLL_S = 0.1
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s/:]+):\d+(/\S*)?$")


@click.group("backends")
def backends() -> None:
    """The running gateway's backends, and changes to them.

    Changes take effect at the next request and need no restart; requests in flight end undisturbed. They last as long
    as the gateway runs; with --save they are written into a file of their own beside the configuration, which is never
    touched, and outlast a restart.
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
@json_option
def list_(status: str | None, config: str | None, url: str | None, as_json: bool) -> None:
    """Show every backend: how it is, what it serves, how busy it is.

    It exits with 1 if there is none.
    """
    everything = find_admin(config, url).backends()
    found = [backend for backend in everything if status in (None, backend["status"])]
    if as_json:
        print_json({"backends": found})
    elif found:
        print_text(backend_table(found))
    if everything and not found:
        raise Failure(
            f"No backend is {status}; there are {len(everything)} of another status.",
            status=Exit.NEGATIVE,
        )
    if not found:
        raise Failure(
            "There is no backend; add one with `nexus backends add URL`.", status=Exit.NEGATIVE
        )


def backend_table(found: list[dict[str, Any]]) -> str:
    rows = [
        (
            backend["name"],
            backend["type"],
            backend["url"],
            _status(backend),
            since(backend["since"]) if backend["since"] else "-",
            state(backend["circuit"].replace("_", " ")),
            f"{backend['in_flight']}/{backend['capacity']}"
            if backend["capacity"]
            else str(backend["in_flight"]),
            milliseconds(backend["latency_ms"]),
            str(len(backend["models"])),
            "" if backend["origin"] == "file" else backend["origin"],
            backend["error"] or "",
        )
        for backend in found
    ]
    head = (
        "NAME",
        "TYPE",
        "URL",
        "STATUS",
        "FOR",
        "CIRCUIT",
        "IN FLIGHT",
        "PROBE",
        "MODELS",
        "ORIGIN",
        "ERROR",
    )
    return table(head, rows, right=("FOR", "IN FLIGHT", "PROBE", "MODELS"))


def _status(backend: dict[str, Any]) -> str:
    shown = state(backend["status"])
    return f"{shown}, {state('draining')}" if backend["draining"] else shown


def _setting(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """`KEY=VALUE`, the value as in TOML, or a text where it is none."""
    settings: dict[str, Any] = {}
    for item in given:
        key, is_pair, value = item.partition("=")
        if not is_pair:
            raise click.BadParameter(f"{item!r} is not KEY=VALUE.")
        try:
            settings[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
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
    help="What kind of server it is [found out by asking it, else generic].",
)
@click.option("-p", "--priority", type=int, help="Lower is preferred [50].")
@click.option("--zone", type=click.Choice(get_args(Zone)), help="Its privacy zone [by its kind].")
@click.option("--tier", type=int, help="Its capability tier, 1 to 5 [1].")
@click.option(
    "--max-concurrent", type=int, help="Requests in flight that it takes [as many as it tells]."
)
@click.option(
    "--api-key-env",
    metavar="NAME",
    help="The health process's and workers' variable that holds its key.",
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
@json_option
def add(
    address: str,
    name: str | None,
    more: dict[str, Any],
    save: bool,
    config: str | None,
    url: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Add a backend to the running gateway.

    It gets requests as soon as a probe found it healthy, which is tried at once.
    """
    if "://" not in address and not _HOST_AND_PORT.match(address):
        raise Failure(f"{address} is not an address; it takes http://HOST:PORT.", status=Exit.USAGE)
    address = address if "://" in address else f"http://{address}"
    settings = {"type": given.pop("kind"), **given, **more}
    body = {"name": name or address.partition("://")[2].split("/")[0], "url": address, "save": save}
    body |= {key: value for key, value in settings.items() if value is not None}
    added = find_admin(config, url).admin("POST", "backends", body)
    if as_json:
        print_json(added)
    else:
        print_text(
            f"Added {added['name']} ({added['type']}){_kept(save)}; it gets requests once a probe found it healthy."
        )


@backends.command("remove")
@click.argument("name")
@_save_option
@admin_options
@json_option
def remove(name: str, save: bool, config: str | None, url: str | None, as_json: bool) -> None:
    """Take a backend out of the running gateway. Requests in flight there end undisturbed."""
    gateway = find_admin(config, url)
    found = _named(gateway, name)
    removed = gateway.admin(
        "DELETE", f"backends/{path_part(found['name'])}{'?save=1' if save else ''}"
    )
    if as_json:
        print_json(removed)
    else:
        print_text(f"Removed {found['name']}{_kept(save)}.")


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
@json_option
def drain(
    name: str, wait_s: float | None, save: bool, config: str | None, url: str | None, as_json: bool
) -> None:
    """Give a backend no new requests; it is still probed, and those in flight there end undisturbed.

    With --wait it exits with 1 where some are still in flight after that time.
    """
    gateway = find_admin(config, url)
    found = _drained(gateway, name, on=True, save=save)
    deadline = time.monotonic() + (wait_s or 0)
    while found["in_flight"] and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        found = _named(gateway, found["name"])
    if as_json:
        print_json(found)
    else:
        print_text(
            f"{found['name']} gets no new requests{_kept(save)}; {found['in_flight']} in flight."
        )
    if found["in_flight"] and wait_s is not None:
        raise Failure(
            f"{found['name']} still has {found['in_flight']} in flight after {wait_s:g} s.",
            status=Exit.NEGATIVE,
        )


@backends.command("undrain")
@click.argument("name")
@_save_option
@admin_options
@json_option
def undrain(name: str, save: bool, config: str | None, url: str | None, as_json: bool) -> None:
    """Give a drained backend requests again."""
    found = _drained(find_admin(config, url), name, on=False, save=save)
    if as_json:
        print_json(found)
    else:
        print_text(f"{found['name']} gets requests again{_kept(save)}; it is {found['status']}.")


def _drained(gateway: Gateway, name: str, *, on: bool, save: bool) -> dict[str, Any]:
    path = f"backends/{path_part(_named(gateway, name)['name'])}/{'drain' if on else 'undrain'}"
    found: dict[str, Any] = gateway.admin("POST", path, {"save": save})
    return found


def _named(gateway: Gateway, name: str) -> dict[str, Any]:
    """The backend of this name, or of this id (its label in metrics)."""
    found = gateway.backends()
    for key in ("name", "id"):
        for backend in found:
            if backend[key] == name:
                return backend
    names = [backend["name"] for backend in found]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names) or 'none'}."
    raise Failure(f"There is no backend {name}; {hint}", status=Exit.NEGATIVE)


def _kept(save: bool) -> str:
    return ", saved" if save else " until the gateway is started again"
