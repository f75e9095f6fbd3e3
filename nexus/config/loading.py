"""From a TOML file, the environment and the command line to a checked `Config`.

Precedence: command line, environment, file, defaults. What is wrong is said in one sentence for each fault, naming the
place, the key, the value and what is allowed; nothing is half applied.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import inspect as shapes
from msgspec.structs import replace

from nexus.config.addresses import backend_problems, listen_address, proxies_ignored
from nexus.config.records import (
    ENVIRONMENT,
    MAX_ALIAS_DEPTH,
    MAX_BACKENDS,
    NOT_SUPPORTED,
    RESTART_ONLY,
    BackendConfig,
    Config,
)
from nexus.config.secrets import SecretError, displayable_name, secret

DEFAULT_FILE = "nexus.toml"
_SHORT_TOKEN = 16
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._~\[\]:-]+")
COMMAND_LINE = "the command line"
"""The origin of a value that an option gave."""
_IGNORED = "The Rust gateway ignored this."


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds one sentence for each fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class LoadedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A checked configuration, where it came from, and what the operator should know about it."""

    config: Config
    path: Path | None
    origins: dict[str, str]
    warnings: list[str]


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> LoadedConfig:
    """Read and check the configuration.

    `path` None takes `$NEXUS_CONFIG`, else `nexus.toml` in the working directory where there is one.
    `overrides` are command-line values by dotted key (`server.port`); None values are left out.
    Raises `ConfigError` with every fault found.
    """
    environ = os.environ if environ is None else environ
    named = path or environ.get("NEXUS_CONFIG")
    file = Path(named) if named else Path(DEFAULT_FILE)
    data: dict[str, Any] = {}
    if named or file.exists():
        data = _read(file)
        used: Path | None = file
    else:
        used = None
    source = str(used) if used else "defaults"
    origins = {key: source for key, _ in _leaves(data)}
    ignored_targets = _split_log_directives(data)
    in_file = frozenset(key for key in NOT_SUPPORTED if _is_set(data, key.split(".")))

    for variable, (table, key) in ENVIRONMENT.items():
        if environ.get(variable):
            _set(data, f"{table}.{key}", environ[variable])
            origins[f"{table}.{key}"] = f"environment variable {variable}"
    for dotted, value in (overrides or {}).items():
        if value is not None:
            _set(data, dotted, value)
            origins[dotted] = COMMAND_LINE

    ignored_targets |= _split_log_directives(data)
    checker = _Checker(source=source, origins=origins)
    checked = checker.section(data, Config, ())
    if checker.problems:
        raise ConfigError(checker.problems)
    config = msgspec.convert(checked, Config)
    if config.server.host.startswith("["):  # IPv6 as a url has it
        config = replace(config, server=replace(config.server, host=config.server.host.strip("[]")))
    problems = [f"{source}: {problem}" for problem in find_conflicts(config)]
    problems += [f"{source}: {problem}" for problem in find_secret_problems(config, environ)]
    if problems:
        raise ConfigError(problems)
    warnings = _warnings(config, source, in_file, environ)
    if ignored_targets:
        names = ", ".join(sorted(ignored_targets))
        warnings.append(
            f"{source}: [logging] level has no effect for {names}; only parts of nexus have levels."
        )
    return LoadedConfig(config=config, path=used, origins=origins, warnings=warnings)


def process_config(environ: Mapping[str, str] | None = None) -> Config:
    """The settings that a worker needs before it has seen a fleet: environment and defaults, never the file.

    The health process alone reads the file; everything in it reaches the workers with the fleet snapshot.
    """
    environ = os.environ if environ is None else environ
    return load(os.devnull, environ=environ).config


def partial_config(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Config:
    """Enough of a configuration that cannot be used to find the gateway that runs: its run directory and port."""
    try:
        server = _lookup(_read(Path(path or environ.get("NEXUS_CONFIG") or DEFAULT_FILE)), "server")
    except ConfigError:
        server = None
    given = (
        {key: server.get(key) for key in ("run_dir", "port")} if isinstance(server, dict) else {}
    )
    try:
        return load(
            os.devnull,
            environ=environ,
            overrides={f"server.{key}": value for key, value in given.items()},
        ).config
    except ConfigError:
        return process_config({})


def check_table(
    data: Any, record: type[msgspec.Struct], *, source: str, path: tuple[str, ...]
) -> dict[str, Any]:
    """A table checked against its record, as those of the file are. Raises `ConfigError` with every fault found."""
    checker = _Checker(source=source, origins={})
    checked = checker.section(data, record, path)
    if checker.problems:
        raise ConfigError(checker.problems)
    return checked


def restart_needed(old: Config, new: Config) -> list[str]:
    """The keys in which two configurations differ and that only a restart takes up."""

    def value(config: Any, dotted: str) -> Any:
        for key in dotted.split("."):
            config = getattr(config, key)
        return config

    return [key for key in RESTART_ONLY if value(old, key) != value(new, key)]


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            [f"{file}: there is no such file; `nexus config init` writes one to start from."]
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: it cannot be read ({error})."]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{file}: this is not TOML ({error})."]) from error


class _Checker:
    """Walks a table beside its record, so that a message can name what the record would have allowed."""

    def __init__(self, *, source: str, origins: Mapping[str, str]) -> None:
        self.source = source
        self.origins = origins
        self.problems: list[str] = []

    def section(
        self, data: Any, record: type[msgspec.Struct], path: tuple[str, ...]
    ) -> dict[str, Any]:
        if not isinstance(data, dict):
            self._wrong(path, data, "a table")
            return {}
        hints = get_type_hints(record, include_extras=True)
        result = {}
        for key, value in data.items():
            if key in hints:
                result[key] = self.value(value, hints[key], (*path, key))
            else:
                self._unknown(key, list(hints), path)
        for field in msgspec.structs.fields(record):
            if field.required and field.name not in data:
                self.problems.append(
                    f"{self.source}: {_table(path)} lacks {field.name}, which has no default."
                )
        return result

    def value(self, value: Any, hint: Any, path: tuple[str, ...]) -> Any:
        shape = _bare(shapes.type_info(hint))
        options = (
            [_bare(option) for option in shape.types]
            if isinstance(shape, shapes.UnionType)
            else [shape]
        )
        for option in options:
            if isinstance(option, shapes.StructType):
                return self.section(value, option.cls, path)
            if isinstance(option, shapes.ListType) and isinstance(
                _bare(option.item_type), shapes.StructType
            ):
                record = _bare(option.item_type).cls
                if isinstance(value, list):
                    return [
                        self.section(item, record, (*path[:-1], f"{path[-1]}[{n}]"))
                        for n, item in enumerate(value)
                    ]
                if isinstance(value, dict) and any(
                    isinstance(other, shapes.DictType) for other in options
                ):
                    return {
                        name: self.section(item, record, (*path, name))
                        for name, item in value.items()
                    }
                self._wrong(path, value, f"a list of tables, written [[{'.'.join(path)}]]")
                return []
        value = _in_known_case(value, options)
        try:
            text = self.origins.get(".".join(path), "").startswith("environment")
            return msgspec.convert(value, hint, strict=not text)
        except msgspec.ValidationError:
            self._wrong(path, value, describe(hint))
            return value

    def _wrong(self, path: tuple[str, ...], value: Any, allowed: str) -> None:
        origin = self.origins.get(".".join(path), self.source)
        shown = "true" if value is True else "false" if value is False else repr(value)
        self.problems.append(
            f"{origin}: {_table(path[:-1])} {path[-1]} = {shown} is not allowed; it takes {allowed}."
        )

    def _unknown(self, key: str, known: list[str], path: tuple[str, ...]) -> None:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        hint = (
            f"did you mean {close[0]}?"
            if close
            else f"known are {', '.join(sorted(known))}. {_IGNORED}"
        )
        self.problems.append(f"{self.source}: {_table(path)} has no key {key}; {hint}")


def _in_known_case(value: Any, options: list[Any]) -> Any:
    """The value with each word of a fixed set in the case of that set: `Restricted` becomes `restricted`."""
    for option in options:
        if (
            isinstance(option, shapes.LiteralType)
            and isinstance(value, str)
            and value.lower() in option.values
        ):
            return value.lower()
        if isinstance(option, shapes.DictType) and isinstance(value, dict):
            return {
                key: _in_known_case(item, [_bare(option.value_type)]) for key, item in value.items()
            }
        if isinstance(option, shapes.ListType) and isinstance(value, list):
            return [_in_known_case(item, [_bare(option.item_type)]) for item in value]
    return value


def describe(hint: Any) -> str:
    """What a setting takes, in words: `a whole number from 1 to 65535`."""
    return _describe(_bare(shapes.type_info(hint)))


def _describe(shape: Any) -> str:
    match shape:
        case shapes.UnionType():
            return " or ".join(
                _describe(_bare(option))
                for option in shape.types
                if not isinstance(option, shapes.NoneType)
            )
        case shapes.BoolType():
            return "true or false"
        case shapes.IntType() | shapes.FloatType():
            noun = "a whole number" if isinstance(shape, shapes.IntType) else "a number"
            low = (
                f" from {shape.ge}"
                if shape.ge is not None
                else f" above {shape.gt}"
                if shape.gt is not None
                else ""
            )
            return noun + low + (f" to {shape.le}" if shape.le is not None else "")
        case shapes.LiteralType():
            return "one of " + ", ".join(f'"{value}"' for value in shape.values)
        case shapes.StrType():
            return "a text" + (" that is not empty" if shape.min_length else "")
        case shapes.ListType():
            return f"a list, each item {_describe(_bare(shape.item_type))}"
        case shapes.DictType():
            return f"a table, each value {_describe(_bare(shape.value_type))}"
        case shapes.StructType():
            return "a table"
    return "any value"


def _bare(shape: Any) -> Any:
    while isinstance(shape, shapes.Metadata):
        shape = shape.type
    return shape


def _table(path: tuple[str, ...]) -> str:
    return f"[{'.'.join(path)}]" if path else "the file"


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _lookup(data: Mapping[str, Any], dotted: str) -> Any:
    value: Any = data
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *tables, key = dotted.split(".")
    for table in tables:
        nested = data.setdefault(table, {})
        if not isinstance(nested, dict):
            return  # the walk reports the table that is not one
        data = nested
    data[key] = value


def _is_set(data: Any, path: list[str]) -> bool:
    """Whether a key is given, in the table itself or in any table of a list or of tables by name."""
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
    """Move the directives of a level such as `info,nexus::routing=debug` into `component_levels`.

    Returns the targets of directives that no part of Nexus answers to, such as `hyper`.
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


def _of_models(backend: BackendConfig) -> Iterator[str]:
    """What cannot hold of the models that are stated for a backend."""
    if not (backend.models or backend.discover_models):
        yield "discover_models = false leaves it without models; state them in [[backends.models]]."
    names = [model.name for model in backend.models]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f'models name = "{name}" is used twice; state each model once.'


def find_conflicts(config: Config) -> Iterator[str]:
    """What no single key shows: names used twice, addresses that are none, aliases that never arrive."""
    if len(config.backends) > MAX_BACKENDS:
        yield f"[[backends]] has {len(config.backends)} entries; at most {MAX_BACKENDS} are taken."
    seen: set[str] = set()
    for number, backend in enumerate(config.backends):
        where = f"[backends[{number}]]"
        if backend.name in seen:
            yield (
                f'{where} name = "{backend.name}" is used twice; each backend needs a name of its own. '
                "The Rust gateway accepted this and mixed up the two."
            )
        seen.add(backend.name)
        if not backend.name.isprintable():
            yield f"{where} name = {backend.name!r} is not allowed; it takes printable characters only."
        yield from (
            f"{where} {problem}" for problem in (*backend_problems(backend), *_of_models(backend))
        )
    yield from _of_clients(config)
    if config.health_check.listen != "off":
        try:
            listen_address(config.health_check.listen)
        except ValueError:
            yield (
                f'[health_check] listen = "{config.health_check.listen}" is not allowed; '
                'it takes host:port, such as "127.0.0.1:9464", or "off".'
            )
    aliases = config.routing.aliases
    for name in aliases:
        target, depth = name, 0
        while target in aliases and depth <= MAX_ALIAS_DEPTH:
            target, depth = aliases[target], depth + 1
        if depth > MAX_ALIAS_DEPTH:
            yield (
                f'[routing.aliases] "{name}" does not end within {MAX_ALIAS_DEPTH} steps; point it at a model. '
                f"The Rust gateway stopped after step {MAX_ALIAS_DEPTH} and ignored the rest."
            )
    for name, chain in config.routing.fallbacks.items():
        if name in chain:
            yield f'[routing.fallbacks] "{name}" falls back to itself; name other models. {_IGNORED}'


def _of_clients(config: Config) -> Iterator[str]:
    server = config.server
    if server.max_buffered_bytes < server.max_request_bytes:
        yield (
            f"[server] max_buffered_bytes = {server.max_buffered_bytes} is not allowed; "
            f"it takes at least max_request_bytes, which is {server.max_request_bytes}."
        )
    for origin in config.cors.origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            yield (
                f'[cors] origins = "{origin}" is not allowed; it takes "*", or an origin as a browser sends it, '
                'such as "https://chat.example.com": scheme, host in small letters and port, without a path.'
            )


def find_secret_problems(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each secret of this configuration that no header can carry."""
    named = [(f"backend {backend.name}", backend.api_key_env) for backend in config.backends]
    for where, name in [*named, ("[admin] token_env", config.admin.token_env)]:
        try:
            secret(name, environ)
        except SecretError as error:
            yield f"{where}: {error}"


def _warnings(
    config: Config, source: str, in_file: frozenset[str], environ: Mapping[str, str]
) -> list[str]:
    warnings = []
    fine = {
        "discovery": not config.discovery.enabled,
        "queue.priority_header": config.queue.priority_header.lower() == "x-nexus-priority",
    }
    missing = [
        f"[{key}] ({meaning})"
        for key, meaning in NOT_SUPPORTED.items()
        if key in in_file and not fine.get(key)
    ]
    if missing:
        warnings.append(f"{source}: accepted, but not built yet: {', '.join(missing)}.")
    warnings += [
        f"{source}: backend {backend.name} ({backend.type}) is left out: {backend.provider.unsupported}."
        for backend in config.backends
        if backend.provider.unsupported
    ]
    for backend in config.backends:
        if (
            backend.api_key_env
            and not backend.provider.unsupported
            and secret(backend.api_key_env, environ) is None
        ):
            warnings.append(
                f"{source}: backend {backend.name} gets no key: api_key_env names "
                f"{displayable_name(backend.api_key_env)}, which is not set in this environment."
            )
    by_default = [backend for backend in config.backends if backend.accepts_client_keys_by_default]
    if len({urlsplit(backend.url).hostname for backend in by_default}) > 1:
        warnings.append(
            f"{source}: clients' own keys go to backends of several hosts: "
            f"{', '.join(backend.name for backend in by_default)}; "
            "set forward_authorization for each, true for the one that clients have keys of."
        )
    if config.server.max_buffered_bytes < config.server.max_answer_bytes:
        warnings.append(
            f"{source}: [server] max_buffered_bytes is below max_answer_bytes; "
            "a response between the two is always answered 503."
        )
    if len(secret(config.admin.token_env, environ) or "") in range(1, _SHORT_TOKEN):
        warnings.append(
            f"{source}: the token in {displayable_name(config.admin.token_env)} can be guessed; "
            f"take at least {_SHORT_TOKEN} random characters."
        )
    if config.logging.enable_content_logging:
        warnings.append(
            f"{source}: [logging] enable_content_logging has no effect: prompts and answers are never logged."
        )
    if config.backends and (warning := proxies_ignored(environ)):
        warnings.append(warning)
    return warnings
