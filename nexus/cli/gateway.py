"""Finds the running gateway and sends it requests.

Two addresses respond: the gateway's own, which clients use, and the health process's, which also
takes changes. Both come from the configuration; `--url` and `$NEXUS_URL` name another gateway.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from hmac import compare_digest
from pathlib import Path
from secrets import token_urlsafe
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import click
from msgspec.structs import replace

from nexus.cli.http_client import NoResponse, Response, http_request
from nexus.cli.output import Exit, Failure
from nexus.config import Config, ConfigError, load
from nexus.config.addresses import listen_address, url_to
from nexus.config.loading import DEFAULT_FILE, partial_config
from nexus.config.secrets import SecretError, secret
from nexus.fleet.identity_proof import CHALLENGE, PROOF, proof
from nexus.fleet.records import Snapshot
from nexus.fleet.run_directory import Generation, RunDirectory, RunDirectoryError
from nexus.fleet.snapshot import SnapshotReader
from nexus.runtime.files import exists

_OF_CLIENT_KEYS = ("invalid_api_key", "key_expired", "key_blocked", "ambiguous_credentials")
"""Codes of a 401 for a client's key. Any other 401 requires the operators' token."""
Command = Callable[..., Any]

config_option = click.option(
    "-c",
    "--config",
    "config",
    metavar="FILE",
    help="Configuration file [nexus.toml, if there is one].",
)


def gateway_options(command: Command) -> Command:
    """`-c` and `--url`, for a command that reads from a gateway, which it gets as `gateway`."""
    url = click.option(
        "--url", metavar="URL", envvar="NEXUS_URL", help="The gateway's address [$NEXUS_URL]."
    )
    return config_option(url(_with_gateway(command, find_gateway)))


def admin_options(command: Command) -> Command:
    """`-c` and `--url`, for a command that changes a gateway, which it gets as `gateway`."""
    return admin_addresses(_with_gateway(command, find_admin))


def admin_addresses(command: Command) -> Command:
    """`-c` and `--url`, as they are given."""
    note = "The address of its health process ([health_check] listen) [$NEXUS_OPERATIONS_URL]."
    url = click.option("--url", metavar="URL", envvar="NEXUS_OPERATIONS_URL", help=note)
    return config_option(url(command))


def _with_gateway(command: Command, find: Callable[[str | None, str | None], Gateway]) -> Command:
    @wraps(command)
    def run(*args: Any, config: str | None, url: str | None, **options: Any) -> Any:
        return command(*args, gateway=find(config, url), **options)

    return run


@dataclass
class Gateway:
    """A gateway to which a command sends requests.

    Attributes:
        base: The address for clients.
        operations: The address of the health process, which takes changes.
        origin: Where these addresses come from, for messages.
        config: Its configuration, as far as it could be read.
        run_dir: Its run directory, if it is on this host and can be trusted.
        problems: Why the configuration cannot be used.
        local: The configuration led to it, so its run directory may be on this host.
        distrust: Why the run directory is not used.
    """

    base: str | None
    operations: str | None
    origin: str
    config: Config
    run_dir: RunDirectory | None
    problems: list[str] = field(default_factory=list)
    local: bool = False
    distrust: str | None = None
    _proved: dict[str, bool] = field(default_factory=dict)

    def use_run_directory(self) -> None:
        """Use the run directory of the configuration, if it is safe."""
        self.local, self.run_dir, self.distrust = True, RunDirectory.of(self.config), None
        self._proved.clear()
        try:
            self.run_dir.check()
        except RunDirectoryError as error:
            self.run_dir, self.distrust = None, str(error)

    def get(self, path: str, **query: Any) -> Response:
        """The gateway's response with 200, else that of its health process. Raises `Failure`."""
        target = path + (
            f"?{urlencode(given)}"
            if (given := {k: v for k, v in query.items() if v is not None})
            else ""
        )
        errors, refused = {}, None
        bases = [base for base in (self.base, self.operations) if base]
        for base in bases:
            try:
                headers = self._credentials(base, self.secret())
                if base == self.base:
                    headers |= self.client_key(base)
                response = http_request("GET", base + target, headers=headers)
            except NoResponse as why:
                errors[base] = str(why)
                if base == self.base and self.relocate():
                    bases.insert(1, self.base)
                continue
            if response.status == 200:
                return response
            refused = refused or (base, response)
        if refused is None:
            raise self.unreachable(errors)
        base, response = refused
        if response.status == 401 and response.error_code() in _OF_CLIENT_KEYS:
            message = f"{base}: {response.message()} Commands take it from $NEXUS_API_KEY."
            raise Failure(message, status=Exit.USAGE)
        if response.status == 401:
            raise self._unauthorized(base)
        raise Failure(
            f"{base}{path}: {response.message()}",
            status=Exit.USAGE if response.status == 400 else Exit.NEGATIVE,
        )

    def relocate(self) -> bool:
        """Ask the health process for the gateway's address; returns whether it is a new one.

        An option of `nexus serve` may have set an address that the configuration does not have.
        """
        if self.operations is None or not self.local:
            return False
        try:
            port, _, host = (
                http_request("GET", f"{self.operations}/livez")
                .headers.get("x-nexus-gateway", "")
                .partition(" ")
            )
        except NoResponse:
            return False
        if not port.isdecimal() or (base := url_to(host, int(port))) == self.base:
            return False
        self.base = base
        self.config = replace(
            self.config, server=replace(self.config.server, host=host, port=int(port))
        )
        self.use_run_directory()
        return True

    def admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The response of an admin endpoint, as JSON. Raises `Failure`."""
        if self.operations is None:
            raise Failure(
                f'{self.origin} has [health_check] listen = "off", so the running gateway takes no '
                "changes; change the file and run `nexus reload`.",
                status=Exit.USAGE,
            )
        url = f"{self.operations}/admin/{path}"
        headers = {
            "content-type": "application/json",
            **self._credentials(self.operations, self.token()),
        }
        try:
            response = http_request(
                method,
                url,
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout_s=15,
            )
        except NoResponse as why:
            raise self.unreachable({self.operations: str(why)}) from why
        if response.status == 401:
            if self.relocate():
                return self.admin(method, path, body)
            raise self._unauthorized(self.operations)
        if response.status == 404 and response.error_code() not in (
            "unknown_backend",
            "unknown_budget",
            "unknown_key",
        ):
            raise Failure(
                f"{self.operations} takes no changes ({response.message()}); name the health "
                "process's address with --url or $NEXUS_OPERATIONS_URL.",
                status=Exit.USAGE,
            )
        if response.status >= 300:
            raise Failure(
                response.message(), status=Exit.USAGE if response.status == 400 else Exit.NEGATIVE
            )
        return response.json()

    def backends(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.admin("GET", "backends")["backends"]
        return listed

    def _credentials(self, base: str, token: str | None) -> dict[str, str]:
        """The header with the token; none for a local address without proof."""
        if token is None or (self.local and not self._proves(base)):
            return {}
        return {"authorization": f"Bearer {token}"}

    def client_key(self, base: str) -> dict[str, str]:
        """The header with `$NEXUS_API_KEY`; none for a local address without proof."""
        key = os.environ.get("NEXUS_API_KEY")
        if not key or (self.local and not self._proves(base)):
            return {}
        return {self.config.auth.header: key}

    def _proves(self, base: str) -> bool:
        """Whether the listener knows the run directory's token. The proof does not send it."""
        if base not in self._proved:
            self._proved[base] = False
            key, challenge = self.run_dir.own_token() if self.run_dir else None, token_urlsafe()
            with suppress(NoResponse):
                shown = http_request(
                    "GET", f"{base}/livez", headers={CHALLENGE: challenge}
                ).headers.get(PROOF, "")
                expected = proof(key, challenge, urlsplit(base).port or 0) if key else None
                self._proved[base] = expected is not None and compare_digest(shown, expected)
        return self._proved[base]

    def secret(self) -> str | None:
        """The configured admin token, from the environment or systemd's credentials."""
        try:
            return secret(self.config.admin.token_env)
        except SecretError as error:
            raise Failure(str(error), status=Exit.USAGE) from error

    def token(self) -> str | None:
        """The configured admin token, else the run directory's, which `--url` never gets."""
        if (own := self.secret()) or self.run_dir is None:
            return own
        return self.run_dir.own_token()

    def unreachable(self, errors: Mapping[str, str]) -> Failure:
        addresses = " nor at ".join(f"{base} ({why})" for base, why in errors.items())
        hint = (
            "start it with `nexus serve`, or name its configuration with -c or its address "
            "with --url"
            if self.local
            else "name another address with --url, or leave --url out to use this host's "
            "configuration"
        )
        return Failure(
            f"No gateway responds at {addresses}, the address from {self.origin}; {hint}.",
            status=Exit.UNREACHABLE,
        )

    def _unauthorized(self, base: str) -> Failure:
        if self.local and not self._proved.get(base, True):
            why = self.distrust or "start the gateway, or name its address with --url"
            raise Failure(
                f"{base} does not prove to be this gateway and was sent no token: {why}",
                status=Exit.USAGE,
            )
        name = self.config.admin.token_env
        hint = f"set ${name}" if self.secret() is None else f"${name} holds another one"
        if self.run_dir is not None and self.secret() is None:
            hint += f", or run this as the user who owns {self.run_dir.path}"
        return Failure(f"{base} requires the admin token: {hint}.", status=Exit.USAGE)


def find_gateway(config: str | None, url: str | None) -> Gateway:
    """The gateway for a command. Raises `ConfigError` if the file does not exist.

    A configuration that cannot be used still leads to the gateway that runs with an older one.
    """
    settings, origin, problems = _settings(config)
    if url is not None:
        return Gateway(_base_of(url), None, "--url or $NEXUS_URL", settings, None)
    server, listen = settings.server, settings.health_check.listen
    operations = url_to(*listen_address(listen)) if listen != "off" else None
    gateway = Gateway(
        url_to(server.host, server.port), operations, origin, settings, None, problems
    )
    gateway.use_run_directory()
    return gateway


def find_admin(config: str | None, url: str | None) -> Gateway:
    """The gateway that a command changes; never this host's if the user names another."""
    if url is None and os.environ.get("NEXUS_URL"):
        raise Failure(
            "$NEXUS_URL names a gateway, but changes go to its health process: name that address "
            "with --url or $NEXUS_OPERATIONS_URL, or unset $NEXUS_URL for this host's gateway.",
            status=Exit.USAGE,
        )
    gateway = find_gateway(config, None)
    if url is not None:
        return Gateway(None, _base_of(url), "--url or $NEXUS_OPERATIONS_URL", gateway.config, None)
    return gateway


def run_directory(config: str | None, given: str | None = None) -> RunDirectory:
    """The run directory of a configuration, even of one that cannot be used."""
    run_dir = RunDirectory(given) if given else RunDirectory.of(_settings(config)[0])
    try:
        run_dir.check()
    except RunDirectoryError as error:
        raise Failure(str(error), status=Exit.USAGE) from error
    return run_dir


def last_fleet(run_dir: RunDirectory) -> tuple[Snapshot, Generation]:
    """The fleet that a gateway has published last. Raises `Failure` if none has run there."""
    snapshot = SnapshotReader(run_dir.path).read() if run_dir.path.is_dir() else None
    generation = run_dir.current()
    if snapshot is None or generation is None:
        raise Failure(
            f"No gateway has run in {run_dir.path}; name its configuration with -c.",
            status=Exit.UNREACHABLE,
        )
    return snapshot, generation


def path_part(name: str) -> str:
    """A backend's name as one segment of a path."""
    return quote(name, safe="")


def _settings(config: str | None) -> tuple[Config, str, list[str]]:
    """The settings, where they come from, and why the file cannot be used."""
    try:
        loaded = load(config)
    except ConfigError as error:
        file = config_file(config)
        if not exists(file):
            raise  # the defaults may lead to another gateway
        return partial_config(config, os.environ), str(file), error.problems
    return loaded.config, str(loaded.path) if loaded.path else "the default configuration", []


def config_file(config: str | None) -> Path:
    """The file that a command reads."""
    return Path(config or os.environ.get("NEXUS_CONFIG") or DEFAULT_FILE)


def _base_of(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Failure(f"{url} is not an address; it takes http://HOST:PORT.", status=Exit.USAGE)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
