"""`nexus keys`: makes keys for clients, and lists those that the configuration names."""

from __future__ import annotations

import sys
import time
from datetime import date
from typing import Any

import click
import msgspec

from nexus.cli.gateway import config_option
from nexus.cli.output import Result, returns_result, table


class NewKey(msgspec.Struct, frozen=True):
    """What `nexus keys new --json` prints."""

    id: str
    key: str
    sha256: str


class ListedKey(msgspec.Struct, frozen=True):
    """One key in `nexus keys list --json`."""

    id: str
    name: str
    team: str | None
    state: str
    expires: str | None
    models: list[list[str]]
    endpoints: list[list[str]]


@click.group("keys", short_help="Make and list clients' keys.")
def keys() -> None:
    """Clients' keys: who may use the gateway when [auth] mode is "keys" or "optional"."""


@keys.command("new")
@click.option("--name", default="", help="A name for people.")
@click.option("--team", default="", help="Its team in [[teams]].")
@click.option("--expires", metavar="DAY", help="The last day it is accepted, such as 2027-06-30.")
@returns_result
def new(name: str, team: str, expires: str | None) -> Result:
    """Make a key, and print what belongs into the configuration.

    The key itself is shown this once. The configuration has its SHA-256 only, from which nobody
    can find the key.
    """
    from nexus.access.keys import digest, new_key
    from nexus.config.template import toml

    if expires is not None:
        try:
            expires = date.fromisoformat(expires).isoformat()
        except ValueError:
            message = f"{expires!r} is no day; write it like 2027-06-30."
            raise click.BadParameter(message, param_hint="--expires") from None
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

    Use it to go on with keys that another gateway has handed out.
    """
    from nexus.access.keys import MIN_LENGTH, digest

    key = sys.stdin.readline().strip()
    if len(key) < MIN_LENGTH:
        message = f"The key is shorter than {MIN_LENGTH} characters; it could be guessed."
        raise click.UsageError(message)
    return Result({"sha256": digest(key)}, digest(key))


@keys.command("list")
@config_option
@returns_result
def list_(config: str | None) -> Result:
    """List the keys that the configuration names, with what each may use."""
    from nexus.access.callers import callers_of
    from nexus.config import load

    settings = load(config).config
    callers = callers_of(settings, key_labels={}, team_labels={})
    notes = []
    if callers is None:
        notes.append('[auth] mode is "off": nobody is asked for a key.')
        auth = msgspec.structs.replace(settings.auth, mode="keys")
        settings = msgspec.structs.replace(settings, auth=auth)
        callers = callers_of(settings, key_labels={}, team_labels={})
        assert callers is not None
    expires = {key.id: key.expires for key in settings.keys}
    listed = [
        ListedKey(
            id=caller.key,
            name=caller.name,
            team=None if caller.team == "none" else caller.team,
            state=caller.state(time.time()),
            expires=day.isoformat() if (day := expires[caller.key]) else None,
            models=[list(globs) for globs in caller.models],
            endpoints=[sorted(names) for names in caller.endpoints],
        )
        for caller in callers.by_key.values()
    ]
    rows = [
        (
            key.id,
            key.name,
            key.team or "",
            key.state,
            key.expires or "",
            " and ".join(map(", ".join, key.models)) or "all",
            " and ".join(map(", ".join, key.endpoints)) or "all",
        )
        for key in listed
    ]
    head = ("ID", "NAME", "TEAM", "STATE", "EXPIRES", "MODELS", "ENDPOINTS")
    text = table(head, rows) if rows else "No keys; `nexus keys new` makes one."
    return Result(listed, text, notes=notes)
