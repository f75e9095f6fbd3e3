"""Loads the configuration: a file, the environment and the command line become a checked `Config`.

Precedence: command line, environment, file, defaults. Each problem is one sentence that names the
source, the key, the value and what is allowed. A configuration with a problem is not used at all.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from nexus.config.addresses import proxies_ignored
from nexus.config.checking import ConfigError, check_table
from nexus.config.consistency import (
    find_address_conflicts,
    find_conflicts,
    find_secret_problems,
    find_warnings,
)
from nexus.config.cost_records import Costs, PriceFile, price_conflicts
from nexus.config.records import ENVIRONMENT, NOT_SUPPORTED, RESTART_ONLY, Config
from nexus.runtime.files import exists

DEFAULT_FILE = "nexus.toml"
COMMAND_LINE = "the command line"
"""The origin of a value that an option gave."""


class LoadedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A checked configuration, its source, and warnings for the operator."""

    config: Config
    path: Path | None
    origins: dict[str, str]
    warnings: list[str]


class _Layers:
    """The layers of a configuration, merged into one table; a later layer wins.

    Attributes:
        source: The file, or `defaults` without one.
        data: The merged table.
        origins: Dotted key → where its value comes from.
        overridden: Values of the file that another layer replaced, as tables. They must be right,
            too: the next start may use them.
    """

    def __init__(self, file: Path | None) -> None:
        self.source = str(file) if file else "defaults"
        self.data = _read(file) if file else {}
        self.origins = {key: self.source for key, _ in _leaves(self.data)}
        self.overridden: dict[str, dict[str, Any]] = {}

    def add_environment(self, environ: Mapping[str, str]) -> None:
        for variable, (table, key) in ENVIRONMENT.items():
            if environ.get(variable):
                self._set(f"{table}.{key}", environ[variable], f"environment variable {variable}")

    def add_options(self, options: Mapping[str, Any]) -> None:
        for dotted, value in options.items():
            if value is not None:
                self._set(dotted, value, COMMAND_LINE)

    def _set(self, dotted: str, value: Any, origin: str) -> None:
        table, _, key = dotted.partition(".")
        data = self.data.setdefault(table, {})
        if not isinstance(data, dict):
            return  # the check reports it
        if key in data and self.origins.get(dotted) == self.source:
            self.overridden.setdefault(table, {})[key] = data[key]
        self.origins[dotted], data[key] = origin, value


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> LoadedConfig:
    """Read and check the configuration.

    Without `path`, `$NEXUS_CONFIG` names the file; without that, it is `nexus.toml` in the working
    directory, if it exists. `overrides` are command-line values by dotted key (`server.port`); None
    values are skipped. Raises `ConfigError` with every problem.
    """
    environ = os.environ if environ is None else environ
    named = path or environ.get("NEXUS_CONFIG")
    file = Path(named or DEFAULT_FILE)
    used = file if named or exists(file) else None
    layers = _Layers(used)
    unknown_targets = _split_log_directives(layers.data)
    given = frozenset(key for key in NOT_SUPPORTED if _is_set(layers.data, key.split(".")))
    layers.add_environment(environ)
    layers.add_options(overrides or {})
    unknown_targets |= _split_log_directives(layers.data)
    source = layers.source

    checked = check_table(
        layers.data,
        Config,
        source=source,
        path=(),
        origins=layers.origins,
        overridden=layers.overridden,
    )
    config = msgspec.convert(checked, Config)
    host = config.server.host.strip("[]")  # IPv6 may be written as in a URL
    if config.auth.mode == "keys" and not _is_set(layers.data, ["server", "host"]):
        host = "0.0.0.0"
    config = replace(config, server=replace(config.server, host=host))
    problems = [*find_conflicts(config), *find_secret_problems(config, environ)]
    if not problems and file != Path(os.devnull):
        problems += find_address_conflicts(config)
    if problems:
        raise ConfigError(*(f"{source}: {problem}" for problem in problems))
    if config.costs.prices:
        config = replace(config, costs=_with_price_file(config.costs, beside=file))
    warnings = [f"{source}: {warning}" for warning in find_warnings(config, given, environ)]
    if config.backends and (warning := proxies_ignored(environ)):
        warnings.append(warning)
    if unknown_targets:
        names = ", ".join(sorted(unknown_targets))
        warnings.append(
            f"{source}: [logging] level has no effect for {names}; name a part of Nexus as in "
            '"info,nexus::health=debug".'
        )
    return LoadedConfig(config=config, path=used, origins=layers.origins, warnings=warnings)


def _with_price_file(costs: Costs, *, beside: Path) -> Costs:
    """The settings with the prices of the file that they name. Raises `ConfigError`."""
    path = beside.parent / costs.prices
    table = _read(path, if_missing="[costs] prices names it")
    checked = check_table(table, PriceFile, source=str(path), path=())
    read = msgspec.convert(checked, PriceFile)
    if problems := [f"{path}: {problem}" for problem in price_conflicts(read.price)]:
        raise ConfigError(*problems)
    version = read.version or costs.version
    return replace(costs, version=version, price=[*costs.price, *read.price])


def process_config(environ: Mapping[str, str] | None = None) -> Config:
    """The settings that a worker needs before it has seen a fleet: environment and defaults.

    Only the health process reads the file. Workers get its settings with the fleet snapshot.
    """
    environ = os.environ if environ is None else environ
    return load(os.devnull, environ=environ).config


def partial_config(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Config:
    """The run directory and port of a file that cannot be used, to find the running gateway."""
    try:
        server = _read(Path(path or environ.get("NEXUS_CONFIG") or DEFAULT_FILE)).get("server")
    except ConfigError:
        server = None
    given = server if isinstance(server, dict) else {}
    overrides = {f"server.{key}": given.get(key) for key in ("run_dir", "port")}
    try:
        return load(os.devnull, environ=environ, overrides=overrides).config
    except ConfigError:
        return process_config({})


def restart_needed(old: Config, new: Config) -> list[str]:
    """The keys in which two configurations differ and that only a restart applies."""

    def value(config: Any, dotted: str) -> Any:
        for key in dotted.split("."):
            config = getattr(config, key)
        return config

    return [key for key in RESTART_ONLY if value(old, key) != value(new, key)]


def _read(
    file: Path, *, if_missing: str = "`nexus config init` writes one to start from"
) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file; {if_missing}.") from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{file}: it cannot be read ({why}).") from error
    except (ValueError, RecursionError) as error:  # of a number too long, of lists too deep
        raise ConfigError(f"{file}: this is not TOML ({error}).") from error


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_set(data: Any, path: list[str]) -> bool:
    """Whether a key is set in a table, or in any table of a list or of named tables."""
    if not path:
        return data not in (None, {}, [])
    if isinstance(data, list):
        return any(_is_set(item, path) for item in data)
    if not isinstance(data, dict):
        return False
    if path[0] in data:
        return _is_set(data[path[0]], path[1:])
    return len(path) == 1 and any(
        isinstance(item, dict) and path[0] in item for item in data.values()
    )


def _split_log_directives(data: dict[str, Any]) -> set[str]:
    """Move directives such as `info,nexus::routing=debug` from the level to `component_levels`.

    Returns the targets that are no part of Nexus, such as `hyper`.
    """
    logging = data.get("logging")
    level = logging.get("level") if isinstance(logging, dict) else None
    if (
        not isinstance(logging, dict)
        or not isinstance(level, str)
        or not ("," in level or "=" in level)
    ):
        return set()
    plain, ignored, levels = [], set(), {}
    for directive in filter(None, map(str.strip, level.split(","))):
        target, is_pair, chosen = directive.partition("=")
        crate, *parts = target.strip().split("::")
        if not is_pair or (crate == "nexus" and not parts):
            plain.append(chosen.strip() if is_pair else directive)
        elif crate == "nexus":
            levels[parts[0]] = chosen.strip()
        else:
            ignored.add(target.strip())
    logging["level"] = plain[-1] if plain else "info"
    given = logging.get("component_levels", {})
    if levels and isinstance(given, dict):
        logging["component_levels"] = given | levels
    return ignored
