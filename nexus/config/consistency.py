"""Finds contradictions and doubtful settings in a configuration with valid values."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from nexus.config.access_records import ENDPOINTS, KEY_HEADERS, RESERVED_KEYS, Auth
from nexus.config.addresses import backend_problems, is_host, is_loopback, listen_address
from nexus.config.admin_records import Admin
from nexus.config.backend_records import BackendConfig
from nexus.config.budget_records import Budget, budget_conflicts
from nexus.config.cost_records import price_conflicts
from nexus.config.endpoint_records import endpoint_conflicts
from nexus.config.fields import MAX_ALIAS_DEPTH, MAX_BACKENDS, repeated
from nexus.config.limit_records import (
    Limit,
    counting_limit_problems,
    limit_conflicts,
    own_limit_problems,
)
from nexus.config.records import ENVIRONMENT, NOT_SUPPORTED, Config
from nexus.config.request_log_records import request_log_conflicts
from nexus.config.secrets import SecretError, displayable_name, secret
from nexus.runtime.files import is_directory
from nexus.runtime.log import COMPONENTS
from nexus.runtime.text import suggest

_SHORT_TOKEN = 16
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._~\[\]:-]+")


def find_conflicts(config: Config) -> Iterator[str]:
    """Problems that concern several keys: repeated names, unusable addresses, endless aliases."""
    yield from _backend_conflicts(config)
    yield from _client_conflicts(config)
    yield from endpoint_conflicts(config.endpoints, [backend.name for backend in config.backends])
    yield from _access_conflicts(config)
    yield from limit_conflicts(config.limits)
    yield from counting_limit_problems(config.messages.count_tokens_limit)
    yield from budget_conflicts(config.budgets)
    yield from (f"[costs] {problem}" for problem in price_conflicts(config.costs.price))
    yield from request_log_conflicts(config.request_log)
    listen = config.health_check.listen
    if listen != "off":
        try:
            listen_address(listen)
        except ValueError:
            yield (
                f'[health_check] listen = "{listen}" is not allowed; '
                'it takes host:port, such as "127.0.0.1:9464", or "off".'
            )
    yield from _routing_conflicts(config)


def find_address_conflicts(config: Config) -> Iterator[str]:
    """Problems of addresses that the file and the environment state together."""
    listen = config.health_check.listen
    if listen == "off":
        return
    host, port = listen_address(listen)
    if port == config.server.port and _overlap(host, config.server.host):
        yield (
            f'[health_check] listen = "{listen}" is the address of clients; '
            "take another port than [server] port."
        )


def _overlap(one: str, other: str) -> bool:
    """Whether servers of two hosts cannot have the same port."""
    hosts = {one, other}
    return one == other or "::" in hosts or ("0.0.0.0" in hosts and ":" not in one + other)


def _backend_conflicts(config: Config) -> Iterator[str]:
    if len(config.backends) > MAX_BACKENDS:
        count = len(config.backends)
        yield f"[[backends]] has {count} entries; at most {MAX_BACKENDS} are allowed."
    seen: set[str] = set()
    for number, backend in enumerate(config.backends):
        where, name = f"[backends[{number}]]", backend.name
        if name in seen:
            yield f'{where} name = "{name}" is used twice; each backend needs a name of its own.'
        seen.add(name)
        if not name.isprintable():
            yield f"{where} name = {name!r} is not allowed; it takes printable characters only."
        for problem in (*backend_problems(backend), *_model_conflicts(backend)):
            yield f"{where} {problem}"


def _model_conflicts(backend: BackendConfig) -> Iterator[str]:
    """What is wrong with the models that a backend states."""
    if not (backend.models or backend.lists_models):
        yield "list = false leaves it without models; state them in [[backends.models]]."
    elif not (backend.models or backend.discover_models):
        yield "discover_models = false leaves it without models; state them in [[backends.models]]."
    for name in repeated(model.name for model in backend.models):
        yield f'models name = "{name}" is used twice; state each model once.'


def _client_conflicts(config: Config) -> Iterator[str]:
    server = config.server
    for where, name in [
        ("[server] host", server.host),
        *(("[admin] hosts", name) for name in config.admin.hosts),
    ]:
        if not is_host(name):
            yield (
                f'{where} = "{name}" is not allowed; it takes an IP address or the name of a host, '
                "without a port."
            )
    for key in ("run_dir", "state_dir", "spool_dir"):
        if (getattr(server, key) or "").startswith("~"):
            yield f"[server] {key} is not allowed to begin with ~; write the whole path."
    if server.max_buffered_bytes < server.max_request_bytes:
        yield (
            f"[server] max_buffered_bytes = {server.max_buffered_bytes} is not allowed; "
            f"it takes at least max_request_bytes, which is {server.max_request_bytes}."
        )
    for origin in config.cors.origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            yield (
                f'[cors] origins = "{origin}" is not allowed; it takes "*", or an origin as a '
                'browser sends it, such as "https://chat.example.com": scheme, host in lower case '
                "and port, without a path."
            )


def _identity_conflicts(auth: Auth) -> Iterator[str]:
    """What is wrong with `[auth.identity]`."""
    for peer in auth.identity.peers:
        try:
            ip_network(peer)
        except ValueError as error:
            yield (
                f'[auth.identity] from = "{peer}" is not allowed; it takes an IP address or a '
                f"network, such as 10.0.0.0/8 ({error})."
            )
    for setting, header in (("user", auth.identity.user), ("teams", auth.identity.teams)):
        if header.lower() in (auth.header.lower(), *KEY_HEADERS):
            yield f'[auth.identity] {setting} = "{header}" is not allowed; it carries keys.'


def _access_conflicts(config: Config) -> Iterator[str]:
    yield from _identity_conflicts(config.auth)
    teams = [team.name for team in config.teams]
    for name in repeated(teams):
        yield f'[[teams]] name = "{name}" is used twice; each team needs a name of its own.'
    if "none" in teams:
        yield '[[teams]] name = "none" is not allowed; it stands for keys without a team.'
    for team in config.teams:
        if team.limits is not None:
            where = f'[[teams]] "{team.name}" limits'
            yield from (f"{where}: {problem}" for problem in own_limit_problems(team.limits))
    yield from _unknown_endpoints(config)
    yield from _empty_matches(config, patterns=False)
    for id_ in repeated(key.id for key in config.keys):
        yield f'[[keys]] id = "{id_}" is used twice; each key needs an id of its own.'
    owners: dict[str, str] = {}
    for key in config.keys:
        if key.limits is not None:
            where = f'[[keys]] "{key.id}" limits'
            yield from (f"{where}: {problem}" for problem in own_limit_problems(key.limits))
        if key.id in RESERVED_KEYS:
            yield f'[[keys]] id = "{key.id}" is not allowed; metrics use that word for no key.'
        if key.team and key.team not in teams:
            hint = suggest(key.team, teams) or "name one of [[teams]], or remove it."
            yield f'[[keys]] "{key.id}" team = "{key.team}" does not exist; {hint}'
        if key.grace_until is not None and len(key.sha256) < 2:
            yield f'[[keys]] "{key.id}" grace_until has no effect without a second sha256.'
        for digest in key.sha256:
            if owners.setdefault(digest, key.id) != key.id:
                yield (
                    f'[[keys]] "{owners[digest]}" and "{key.id}" have the same sha256; '
                    "each key needs a secret of its own."
                )


def _unknown_endpoints(config: Config) -> Iterator[str]:
    """Names of endpoints that do not exist: a key with such a name only is refused everywhere."""
    known = (*ENDPOINTS, *(one.label for one in config.endpoints.custom))
    for where, names in (
        *((f'[[teams]] "{team.name}"', team.endpoints) for team in config.teams),
        *((f'[[keys]] "{key.id}"', key.endpoints) for key in config.keys),
    ):
        for name in names or []:
            if name not in known:
                hint = suggest(name, known) or f"known are {', '.join(known)}."
                yield f'{where} endpoints = "{name}" does not exist; {hint}'


def _empty_matches(config: Config, *, patterns: bool) -> Iterator[str]:
    """Limits and budgets for endpoints and teams that do not exist: they would hold nowhere.

    `patterns`: those that a pattern names, which may be meant for later; else those by name.
    """
    known = {
        "endpoint": [*ENDPOINTS, *(one.label for one in config.endpoints.custom)],
        "team": ["none", *(team.name for team in config.teams)],
    }
    held: list[Limit | Budget] = [*config.limits, *config.budgets]
    for one in held:
        where = "[[limits]]" if isinstance(one, Limit) else "[[budgets]]"
        for setting, names in known.items():
            glob = getattr(one.match, setting)
            if patterns == any(c in glob for c in "*?[") and not fnmatch.filter(names, glob):
                hint = suggest(glob, names) or f"known are {', '.join(names)}."
                yield f'{where} "{one.name}" match {setting} = "{glob}" matches nothing; {hint}'


def _routing_conflicts(config: Config) -> Iterator[str]:
    aliases = config.routing.aliases
    for name in aliases:
        target, depth = name, 0
        while target in aliases and depth <= MAX_ALIAS_DEPTH:
            target, depth = aliases[target], depth + 1
        if depth > MAX_ALIAS_DEPTH:
            yield (
                f'[routing.aliases] "{name}" does not end within {MAX_ALIAS_DEPTH} steps; '
                "point it at a model."
            )
    for name, chain in config.routing.fallbacks.items():
        if name in chain:
            yield f'[routing.fallbacks] "{name}" falls back to itself; name other models.'


def find_secret_problems(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each secret of this configuration that no header can carry."""
    named = [(f"backend {backend.name}", backend.api_key_env) for backend in config.backends]
    for where, name in [*named, ("[admin] token_env", config.admin.token_env)]:
        try:
            secret(name, environ)
        except SecretError as error:
            yield f"{where}: {error}"


def find_warnings(
    config: Config, given: frozenset[str], environ: Mapping[str, str]
) -> Iterator[str]:
    """What the operator should know about a configuration that can be used.

    `given` are the keys of `NOT_SUPPORTED` that the file sets.
    """
    harmless = {
        "discovery": not config.discovery.enabled,
        "queue.priority_header": config.queue.priority_header.lower() == "x-nexus-priority",
    }
    ignored = [
        f"[{key}] ({meaning})"
        for key, meaning in NOT_SUPPORTED.items()
        if key in given and not harmless.get(key)
    ]
    if ignored:
        yield f"not supported yet, ignored: {', '.join(ignored)}."
    yield from _backend_warnings(config, environ)
    yield from _empty_matches(config, patterns=True)
    if config.routing.budget.monthly_limit_usd is not None and not config.costs.price:
        yield (
            "[routing.budget] monthly_limit_usd has no effect without prices; name a file of them "
            "in [costs] prices."
        )
    if config.auth.mode != "keys" and not is_loopback(config.server.host):
        yield (
            f"[server] host = {config.server.host!r} is open to others, and [auth] mode = "
            f'"{config.auth.mode}" requires no key: whoever reaches port '
            f'{config.server.port} uses the backends. Set mode to "keys", or listen on 127.0.0.1.'
        )
    if config.auth.mode == "off" and config.auth.identity.peers:
        yield '[auth.identity] has no effect with [auth] mode = "off"; set it to "keys".'
    elif open_ := [peer for peer in config.auth.identity.peers if peer.endswith("/0")]:
        yield (
            f"[auth.identity] from = {open_} believes everybody: whoever reaches port "
            f"{config.server.port} can be any user. Name the proxy's addresses only."
        )
    if config.keys and config.auth.mode == "off":
        yield '[[keys]] have no effect with [auth] mode = "off"; set it to "keys".'
    for name in config.logging.component_levels:
        if name not in COMPONENTS:
            hint = suggest(name, COMPONENTS) or f"known are {', '.join(COMPONENTS)}."
            yield f'[logging] has a level for "{name}", which is no component; {hint}'
    yield from _path_warnings(config)
    yield from _misspelt_variables(config, environ)
    if config.server.max_buffered_bytes < config.server.max_answer_bytes:
        yield (
            "[server] max_buffered_bytes is below max_answer_bytes; "
            "a response of a size between them always becomes a 503."
        )
    token_env = config.admin.token_env
    wanted = token_env != Admin().token_env or "metrics" in config.admin.protect
    if wanted and not secret(token_env, environ):
        yield (
            f"[admin] protects nothing: token_env names {displayable_name(token_env)}, which is "
            "not set in this environment."
        )
    if len(secret(token_env, environ) or "") in range(1, _SHORT_TOKEN):
        yield (
            f"the token in {displayable_name(token_env)} can be guessed; "
            f"take at least {_SHORT_TOKEN} random characters."
        )
    if config.logging.enable_content_logging:
        yield (
            "[logging] enable_content_logging has no effect: no prompt and no response is logged."
        )


def _path_warnings(config: Config) -> Iterator[str]:
    """Directories that do not exist, as far as this process sees."""
    spool_dir, log = config.server.spool_dir, Path(config.request_log.path)
    if spool_dir is not None and not is_directory(Path(spool_dir)):
        yield (
            f'[server] spool_dir = "{spool_dir}" is no directory here; workers that do not see it '
            "either refuse uploads with 503."
        )
    if log.is_absolute() and (is_directory(log) or not is_directory(log.parent)):
        yield (
            f'[request_log] path = "{log}" is not a file in a directory that exists here; workers '
            "that cannot write it lose its lines."
        )


def _misspelt_variables(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    """Variables whose names are nearly those of settings. Others may belong to anybody."""
    known = [*ENVIRONMENT, "NEXUS_CONFIG", "NEXUS_MAX_REQUESTS"]
    secrets = {config.admin.token_env, *(backend.api_key_env for backend in config.backends)}
    for name in environ:
        if name.startswith("NEXUS_") and name not in secrets.union(known):
            for meant in difflib.get_close_matches(name, known, n=1, cutoff=0.84):
                yield f"the environment variable {name} has no effect; did you mean {meant}?"


def _backend_warnings(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    backends = config.backends
    for backend in backends:
        name = backend.api_key_env
        if name and secret(name, environ) is None:
            yield (
                f"backend {backend.name} gets no key: api_key_env names {displayable_name(name)}, "
                "which is not set in this environment."
            )
    forwarding = [backend for backend in backends if backend.accepts_client_keys_by_default]
    if len({urlsplit(backend.url).hostname for backend in forwarding}) > 1:
        yield (
            "clients' own keys go to backends of several hosts: "
            f"{', '.join(backend.name for backend in forwarding)}; "
            "set forward_authorization for each, true for the one that issued the keys."
        )
