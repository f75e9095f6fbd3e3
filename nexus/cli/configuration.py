"""`nexus config`: writing a configuration, checking one, showing what holds and why."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from nexus.cli.gateway import config_option
from nexus.cli.output import counted, json_option, print_json, print_text
from nexus.config import ConfigError, LoadedConfig, load
from nexus.config.loading import DEFAULT_FILE

_SECRET = re.compile(r"(api_?key|password|secret|token)$", re.IGNORECASE)
_MASK = "********"


@click.group("config", short_help="Write a configuration, check one, show what holds.")
def config() -> None:
    """Write a configuration, check one, or show what holds and where it comes from."""


@config.command("check", short_help="Say whether a configuration can be used.")
@click.argument("file", required=False)
@config_option
@json_option
def check(file: str | None, config: str | None, as_json: bool) -> None:
    """Say whether a configuration can be used; exit status 2 where it cannot."""
    try:
        loaded = load(file or config)
    except ConfigError as error:
        if as_json:
            named = file or config or os.environ.get("NEXUS_CONFIG") or DEFAULT_FILE
            print_json(
                {
                    "file": named,
                    "usable": False,
                    "problems": error.problems,
                    "warnings": [],
                    "backends": None,
                }
            )
        raise
    count = len(loaded.config.backends)
    if as_json:
        shown = str(loaded.path) if loaded.path else None
        print_json(
            {
                "file": shown,
                "usable": True,
                "problems": [],
                "warnings": loaded.warnings,
                "backends": count,
            }
        )
        return
    for warning in loaded.warnings:
        print_text(f"warning: {warning}", err=True)
    print_text(f"{loaded.path or 'defaults'}: ok, {counted(count, 'backend')}.")


@config.command("init")
@click.option(
    "-o",
    "--output",
    default="nexus.toml",
    show_default=True,
    metavar="FILE",
    help="Where to write; - prints.",
)
@click.option("-f", "--force", is_flag=True, help="Replace a file that is there.")
@json_option
def init(output: str, force: bool, as_json: bool) -> None:
    """Write a commented configuration with every key and its default."""
    from nexus.config.template import template

    if output == "-":
        click.echo(template(), nl=False)
        return
    path = Path(output)
    if path.exists() and not force:
        raise ConfigError([f"{path} exists already; --force replaces it."])
    try:
        path.write_text(template(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            [f"{path} cannot be written ({error.strerror}); name another file with -o."]
        ) from error
    if as_json:
        print_json({"file": str(path)})
    else:
        print_text(f"Wrote {path}; name your backends in it, then run `nexus serve`.")


@config.command("show", short_help="Show every setting that holds, and its origin.")
@click.argument("file", required=False)
@config_option
@click.option("--origin", is_flag=True, help="Say of each value where it comes from.")
@json_option
def show(file: str | None, config: str | None, origin: bool, as_json: bool) -> None:
    """Show every setting that holds: the file, the environment over it, defaults under it.

    It is TOML that can be used as a file. What operators changed at the running gateway is not in it; that is shown by
    `nexus backends list`. Secrets are not shown: the configuration holds their names only.
    """
    import msgspec

    loaded = load(file or config)
    settings: dict[str, Any] = _masked(msgspec.to_builtins(loaded.config))
    if as_json:
        shown: dict[str, Any] = {"config": settings}
        if origin:
            shown["origins"] = {
                ".".join(path): _origin(loaded, path) for path, _ in _settings(settings)
            }
        print_json(shown)
        return
    print_text("\n".join(_toml(settings, loaded if origin else None)))


def _masked(value: Any) -> Any:
    """Without what is not set, and without what looks like a secret: tables that take any key may hold one."""
    if isinstance(value, dict):
        return {
            key: _MASK
            if _SECRET.search(str(key)) and isinstance(item, str) and item
            else _masked(item)
            for key, item in value.items()
            if item is not None
        }
    return [_masked(item) for item in value] if isinstance(value, list) else value


_FREE = frozenset(
    {("routing", "aliases"), ("routing", "fallbacks"), ("logging", "component_levels")}
)
"""Tables whose keys are the operator's own: shown as one value."""


def _settings(
    table: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting with its place; a table's own keys before the tables within it, as TOML wants them."""
    within = {
        key for key, value in table.items() if isinstance(value, dict) and (*path, key) not in _FREE
    }
    for key, value in table.items():
        if key not in within:
            yield (*path, key), value
    for key, value in table.items():
        if key in within:
            yield from _settings(value, (*path, key))


def _origin(loaded: LoadedConfig, path: tuple[str, ...]) -> str:
    """Where a setting comes from; a table of the operator's own is from where its entries are."""
    dotted = ".".join(path)
    inside = (origin for key, origin in loaded.origins.items() if key.startswith(f"{dotted}."))
    return loaded.origins.get(dotted) or next(inside, "default")


def _toml(settings: dict[str, Any], origins_of: LoadedConfig | None) -> Iterator[str]:
    """The settings as TOML, each with a comment that names its origin where that is asked for."""
    from nexus.config.template import toml

    table: tuple[str, ...] = ()
    backends = settings.pop("backends", [])
    for path, value in _settings(settings):
        if path[:-1] != table:
            if table:
                yield ""
            table = path[:-1]
            yield click.style(f"[{'.'.join(table)}]", bold=True)
        origin = _origin(origins_of, path) if origins_of else ""
        note = click.style(
            f"  # {origin}", dim=origin == "default", fg=None if origin == "default" else "cyan"
        )
        yield f"{path[-1]} = {toml(value)}" + (note if origin else "")
    for backend in backends:
        yield ""
        origin = _origin(origins_of, ("backends",)) if origins_of else ""
        yield click.style("[[backends]]", bold=True) + (
            click.style(f"  # {origin}", fg="cyan") if origin else ""
        )
        for key, value in backend.items():
            yield f"{key} = {toml(value)}"
