"""`nexus config`: writes a configuration, checks one, shows the settings and their origins."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from nexus.cli.gateway import config_option
from nexus.cli.output import Result, counted, returns_result
from nexus.config import ConfigError, LoadedConfig, load
from nexus.config.loading import DEFAULT_FILE

_SECRET = re.compile(r"(api_?key|password|secret|token)$", re.IGNORECASE)
_MASK = "********"


@click.group("config", short_help="Write a configuration, check one, show the settings.")
def config() -> None:
    """Write a configuration, check one, or show the settings and where they come from."""


@config.command("check", short_help="Check whether a configuration can be used.")
@click.argument("file", required=False)
@config_option
@returns_result
def check(file: str | None, config: str | None) -> Result:
    """Check whether a configuration can be used; exit status 2 if not."""
    try:
        loaded = load(file or config)
    except ConfigError as error:
        named = file or config or os.environ.get("NEXUS_CONFIG") or DEFAULT_FILE
        problems = error.problems
        data = {"file": named, "usable": False, "problems": problems, "warnings": []}
        return Result({**data, "backends": None}, failure=error)
    count = len(loaded.config.backends)
    used = str(loaded.path) if loaded.path else None
    warnings = loaded.warnings
    data = {"file": used, "usable": True, "problems": [], "warnings": warnings}
    return Result(
        {**data, "backends": count},
        f"{used or 'defaults'}: ok, {counted(count, 'backend')}.",
        notes=[f"warning: {warning}" for warning in warnings],
    )


@config.command("init")
@click.option(
    "-o",
    "--output",
    default="nexus.toml",
    show_default=True,
    metavar="FILE",
    help="Where to write; - prints.",
)
@click.option("-f", "--force", is_flag=True, help="Replace an existing file.")
@returns_result
def init(output: str, force: bool) -> Result:
    """Write a commented configuration with every key and its default."""
    from nexus.config.template import template

    if output == "-":
        click.echo(template(), nl=False)
        click.get_current_context().exit()
    path = Path(output)
    if path.exists() and not force:
        raise ConfigError(f"{path} exists already; --force replaces it.")
    try:
        path.write_text(template(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}); name another file with -o."
        ) from error
    text = f"Wrote {path}; name your backends in it, then run `nexus serve`."
    return Result({"file": str(path)}, text)


@config.command("show", short_help="Show every setting, and its origin.")
@click.argument("file", required=False)
@config_option
@click.option("--origin", is_flag=True, help="Show where each value comes from.")
@returns_result
def show(file: str | None, config: str | None, origin: bool) -> Result:
    """Show every setting: the file, the environment over it, defaults under it.

    The output is TOML that can be used as a file. It leaves out changes made at the running
    gateway, which `nexus backends list` shows. Secrets are not shown: the configuration holds only
    their names.
    """
    import msgspec

    loaded = load(file or config)
    settings: dict[str, Any] = _masked(msgspec.to_builtins(loaded.config))
    data: dict[str, Any] = {"config": settings}
    if origin:
        paths = (path for path, _ in _settings(settings))
        data["origins"] = {".".join(path): _origin(loaded, path) for path in paths}
    return Result(data, lambda: "\n".join(_toml(settings, loaded if origin else None)))


def _masked(value: Any) -> Any:
    """Without unset keys, and with secrets masked: tables that take any key may hold some."""
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
"""Tables whose keys the operator chooses. Each is shown as one value."""


def _settings(
    table: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting with its path; a table's own keys before its tables, as TOML requires."""
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
    """Where a setting comes from; for a table of `_FREE`, where its entries come from."""
    dotted = ".".join(path)
    inside = (origin for key, origin in loaded.origins.items() if key.startswith(f"{dotted}."))
    return loaded.origins.get(dotted) or next(inside, "default")


def _toml(settings: dict[str, Any], origins_of: LoadedConfig | None) -> Iterator[str]:
    """The settings as TOML; with `origins_of`, each has a comment that names its origin."""
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
