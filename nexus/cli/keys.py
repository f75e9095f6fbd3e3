"""`nexus keys`: the keys of clients, at the running gateway and for its configuration."""

from __future__ import annotations

import re
import sys
from datetime import date
from typing import Any

import click
import msgspec

from nexus.cli.gateway import Command, Gateway, admin_options, path_part
from nexus.cli.output import Result, returns_result, table
from nexus.config.limit_records import RATES

_DURATION = re.compile(r"(\d+)([smhd])")
_LIMITS = (*RATES, "parallel")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class NewKey(msgspec.Struct, frozen=True):
    """What `nexus keys new --json` prints."""

    id: str
    key: str
    sha256: str


@click.group("keys", short_help="The keys of clients: make, list, change.")
def keys() -> None:
    """Clients' keys: who may use the gateway when [auth] mode is "keys" or "optional".

    Changes are made at the running gateway and outlast its restart. They hold for every request
    that arrives after the command has returned. Keys of the configuration are changed there.
    """


def _day(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    try:
        return given and date.fromisoformat(given).isoformat()
    except ValueError:
        raise click.BadParameter(f"{given!r} is no day; write it like 2027-06-30.") from None


def _seconds(_: click.Context, __: click.Parameter, given: str) -> int:
    if (match := _DURATION.fullmatch(given)) is None:
        raise click.BadParameter(f"{given!r} is no duration; write it like 30m, 12h, or 7d.")
    return int(match[1]) * _UNITS_S[match[2]]


def _named(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    if given == "":
        raise click.BadParameter("the name is empty; `nexus keys edit --unset` removes one.")
    return given


_expires_option = click.option(
    "--expires", metavar="DAY", callback=_day, help="The last day it is accepted, as 2027-06-30."
)


def _limits(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in _LIMITS or not value:
            known = ", ".join(_LIMITS)
            raise click.BadParameter(
                f"{text!r} is no limit; write it like requests=60/min. Known are {known}."
            )
        number = int(value) if name == "parallel" and value.isdecimal() else value
        limits[name] = None if value == "off" else number
    return limits


def _field_options(command: Command) -> Command:
    for option in (
        click.option(
            "--limit",
            "limits",
            multiple=True,
            metavar="NAME=AMOUNT",
            callback=_limits,
            help="What it may use: requests=60/min, tokens=200k/min, or parallel=8; "
            "NAME=off ends one [no limits].",
        ),
        click.option(
            "--priority",
            type=click.Choice(["normal", "high"]),
            help="The highest X-Nexus-Priority that its requests may have [normal].",
        ),
        click.option(
            "--endpoint", "endpoints", multiple=True, help="An endpoint it may use [all]."
        ),
        click.option("--model", "models", multiple=True, help="A glob of models it may use [all]."),
        _expires_option,
        click.option("--team", callback=_named, help="Its team in [[teams]]."),
        click.option("--name", help="A name for people."),
    ):
        command = option(command)
    return command


def _fields(given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as the endpoints take them."""
    return {
        field: list(value) if isinstance(value, tuple) else value
        for field, value in given.items()
        if value not in (None, (), {})
    }


@keys.command("new")
@click.option("--name", default="", help="A name for people.")
@click.option("--team", callback=_named, help="Its team in [[teams]].")
@_expires_option
@returns_result
def new(name: str, team: str | None, expires: str | None) -> Result:
    """Make a key for the configuration, and print its entry.

    The key is shown only once. The configuration contains its SHA-256, from which it cannot be
    recovered. `nexus keys add` makes one at the running gateway.
    """
    from nexus.access.keys import digest, new_key
    from nexus.config.template import toml

    id_, key = new_key()
    entry: dict[str, Any] = {"id": id_, "sha256": [digest(key)]}
    entry |= {field: value for field, value in (("name", name), ("team", team)) if value}
    lines = ["[[keys]]", *(f"{field} = {toml(value)}" for field, value in entry.items())]
    if expires is not None:
        lines.append(f"expires = {expires}")
    text = "\n".join(
        [
            f"The key, shown this once:\n\n    {key}\n",
            "Add this to the configuration, and run `nexus reload`:\n",
            *(f"    {line}" for line in lines),
            "\nClients of OpenAI's API take the key from the environment:\n",
            f"    export OPENAI_API_KEY={key}",
        ]
    )
    return Result(NewKey(id_, key, digest(key)), text)


@keys.command("digest")
@returns_result
def digest_command() -> Result:
    """Print the SHA-256 of a key that is read from standard input.

    Use it to name keys of another gateway in the configuration.
    """
    sha256 = _digest_of_input()
    return Result({"sha256": sha256}, sha256)


def _digest_of_input() -> str:
    from nexus.access.keys import MIN_LENGTH, digest

    key = sys.stdin.readline().strip()
    if len(key) < MIN_LENGTH:
        message = f"The key is shorter than {MIN_LENGTH} characters; it could be guessed."
        raise click.UsageError(message)
    return digest(key)


@keys.command("add")
@_field_options
@admin_options
@returns_result
def add(gateway: Gateway, **fields: Any) -> Result:
    """Make a key at the running gateway. The key is shown only once."""
    made = gateway.admin("POST", "keys", _fields(fields))
    notes = _notes(gateway)
    if made["state"] == "expired":
        notes.append("warning: the key is not accepted; it has expired.")
    return Result(made, _made(gateway, made, "shown this once"), notes=notes)


@keys.command("import")
@click.option("--sha256", help="The key's SHA-256 in hexadecimal [read the key from stdin].")
@_field_options
@admin_options
@returns_result
def import_(sha256: str | None, gateway: Gateway, **fields: Any) -> Result:
    """Accept a key that another gateway has handed out.

    The key is read from standard input, or its SHA-256 is given.
    """
    given = sha256.lower() if sha256 else _digest_of_input()
    made = gateway.admin("POST", "keys", {**_fields(fields), "sha256": [given]})
    return Result(made, f"The key is accepted as {made['id']}.", notes=_notes(gateway))


@keys.command("list")
@admin_options
@returns_result
def list_(gateway: Gateway) -> Result:
    """List the keys of the running gateway, with what each may use."""
    listed = gateway.admin("GET", "keys")
    entries = listed["keys"]
    text = _table(entries) if entries else "No keys; `nexus keys add` makes one."
    return Result(entries, text, notes=_notes(gateway, listed["mode"]))


@keys.command("show")
@click.argument("key", metavar="ID")
@admin_options
@returns_result
def show(key: str, gateway: Gateway) -> Result:
    """Show one key."""
    return _shown(gateway.admin("GET", f"keys/{path_part(key)}"))


@keys.command("edit")
@click.argument("key", metavar="ID")
@_field_options
@click.option(
    "--unset",
    multiple=True,
    type=click.Choice(["name", "team", "expires", "models", "endpoints", "priority", "limits"]),
    help="Take a field back to its default.",
)
@admin_options
@returns_result
def edit(key: str, unset: tuple[str, ...], gateway: Gateway, **fields: Any) -> Result:
    """Change the fields of a key; the others stay."""
    changes = _fields(fields) | dict.fromkeys(unset)
    if not changes:
        raise click.UsageError("Name what changes, such as --team or --unset expires.")
    return _change(gateway, key, changes)


@keys.command("block")
@click.argument("key", metavar="ID")
@click.option("--now", is_flag=True, help="Also end its requests in progress, within a second.")
@admin_options
@returns_result
def block(key: str, now: bool, gateway: Gateway) -> Result:
    """Refuse a key's requests from now on. Without --now, those in progress continue."""
    return _change(gateway, key, {"blocked": "now" if now else True})


@keys.command("unblock")
@click.argument("key", metavar="ID")
@admin_options
@returns_result
def unblock(key: str, gateway: Gateway) -> Result:
    """Accept a blocked key again."""
    return _change(gateway, key, {"blocked": False})


@keys.command("rotate")
@click.argument("key", metavar="ID")
@click.option(
    "--grace",
    default="7d",
    callback=_seconds,
    metavar="DURATION",
    help="How long the old key is accepted beside the new one, such as 0s, 12h, or 7d [7d].",
)
@admin_options
@returns_result
def rotate(key: str, grace: int, gateway: Gateway) -> Result:
    """Replace a key by a new one with the same id. The new key is shown only once."""
    made = gateway.admin("POST", f"keys/{path_part(key)}/rotate", {"grace_seconds": grace})
    until = made["grace_until"]
    old = f"the old one is accepted until {until}" if until else "the old one is refused now"
    return Result(made, _made(gateway, made, f"shown this once; {old}"))


@keys.command("remove")
@click.argument("key", metavar="ID")
@admin_options
@returns_result
def remove(key: str, gateway: Gateway) -> Result:
    """Remove a key; the gateway no longer knows it."""
    removed = gateway.admin("DELETE", f"keys/{path_part(key)}")
    return Result(removed, f"Removed {removed['removed']}.")


def _change(gateway: Gateway, key: str, changes: dict[str, Any]) -> Result:
    return _shown(gateway.admin("PATCH", f"keys/{path_part(key)}", changes))


def _shown(key: dict[str, Any]) -> Result:
    return Result(key, _table([key]))


def _made(gateway: Gateway, made: dict[str, Any], remark: str) -> str:
    """A new key with lines for the clients' environment."""
    secret, base = made["key"], gateway.base or "http://GATEWAY"
    return "\n".join(
        [
            f"The key {made['id']}, {remark}:\n\n    {secret}\n",
            "Clients of OpenAI's API take it from the environment:\n",
            f"    export OPENAI_BASE_URL={base}/v1",
            f"    export OPENAI_API_KEY={secret}\n",
            "Claude Code and clients of Anthropic's API:\n",
            f"    export ANTHROPIC_BASE_URL={base}",
            f"    export ANTHROPIC_AUTH_TOKEN={secret}\n",
            "Codex, with OPENAI_API_KEY as above, in ~/.codex/config.toml:\n",
            '    model_provider = "nexus"',
            "    [model_providers.nexus]",
            '    name = "Nexus"',
            f'    base_url = "{base}/v1"',
            '    env_key = "OPENAI_API_KEY"',
            '    wire_api = "responses"',
            "    supports_websockets = false",
        ]
    )


def _notes(gateway: Gateway, mode: str | None = None) -> list[str]:
    mode = mode or gateway.admin("GET", "keys")["mode"]
    return ['[auth] mode is "off": clients need no key.'] if mode == "off" else []


def _all_of(lists: list[list[str]]) -> str:
    return " and ".join(", ".join(names) or "none" for names in lists) or "all"


def _shown_limits(limits: dict[str, Any]) -> str:
    return ", ".join(f"{name} {amount}" for name, amount in limits.items() if amount is not None)


def _table(found: list[dict[str, Any]]) -> str:
    rows = [
        (
            key["id"],
            key["name"],
            key["team"] or "",
            key["state"],
            key["expires"] or "",
            _all_of(key["models"]),
            _all_of(key["endpoints"]),
            _shown_limits(key["limits"] or {}),
            "" if key["origin"] == "file" else key["origin"],
        )
        for key in found
    ]
    head = ("ID", "NAME", "TEAM", "STATE", "EXPIRES", "MODELS", "ENDPOINTS", "LIMITS", "ORIGIN")
    return table(head, rows)
