"""Runs gunicorn and the health process under one parent, which restarts, watches and ends them."""

from __future__ import annotations

import logging
import math
import os
import queue
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import nexus
from nexus.config import ConfigError, LoadedConfig
from nexus.config.addresses import bracketed, listen_address, reachable_host
from nexus.config.loading import COMMAND_LINE
from nexus.config.records import ENVIRONMENT, Server
from nexus.fleet.run_directory import RunDirectory
from nexus.runtime import stderr
from nexus.server.child import Child

log = logging.getLogger("nexus.serve")

_FORWARDED = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that mean what gunicorn's master makes of them."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_POLL_INTERVAL_S = 0.1
_READY_TIMEOUT_S = 5.0
"""A gateway that has served for so long, but has no usable backend, is announced as not ready."""
_HEARTBEAT_INTERVAL_S = 1.0
_FROZEN_S = 5.0
_UNUSABLE = 2
"""The exit status of a health process that cannot use its configuration or a directory."""
_BEYOND_GRACE_S = 10.0
"""gunicorn ends its workers within the grace. This is the time for gunicorn itself."""


class Supervisor:
    """Keeps its helpers running for as long as the gateway runs, and ends all of them in order."""

    def __init__(self, loaded: LoadedConfig, run_dir: RunDirectory) -> None:
        """Checks that ports and run directory are free, and starts to queue signals.

        Raises `ConfigError`.
        """
        settings = loaded.config
        self._server = settings.server
        self._watchdog_s = settings.health_check.watchdog_seconds
        self._run_dir = run_dir
        self.environ = _child_environ(loaded, run_dir)
        """The environment of the children; it may be changed until `run`."""
        self._of_file = {
            variable
            for variable in ("NEXUS_LOG_LEVEL", "NEXUS_LOG_FORMAT")
            if _is_of_file(loaded, ".".join(ENVIRONMENT[variable]))
        }
        self.helpers: list[Child] = []
        """Further children, which are restarted and ended with the gateway."""
        _check_free(loaded, run_dir)
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in (*_FORWARDED, *_ENDING, signal.SIGHUP):
            signal.signal(number, lambda received, _: self._signals.put(received))
        self._checked_at = self._awake_since = time.monotonic()

    def run(self, announce: Callable[[bool], None]) -> int:
        """Start everything and supervise it until TERM or INT; returns the exit status.

        `announce` is called once, with whether the gateway is ready: when it is, or when it serves
        and has had time to become ready.
        """
        # The file's log settings are not forced on the process that reads the file again.
        environ = {key: self.environ[key] for key in self.environ.keys() - self._of_file}
        self._health = Child("health process", ["-m", "nexus.health"], environ)
        self.helpers.insert(0, self._health)
        self._gateway = Child("gateway", _gunicorn_command(), self.environ)
        announced, timeout_at = False, math.inf
        while True:
            received = self._next_signal(_POLL_INTERVAL_S)
            if received in _ENDING:
                return self._stop(at_once=received == signal.SIGQUIT)
            if received is not None:
                self._forward(received)
            status = self._gateway.process.poll()
            if status is not None:
                log.error("the gateway ended by itself", extra={"status": status})
                self._stop()
                return status or 1
            for helper in self.helpers:
                if (ended := helper.keep_running()) is not None:
                    if helper is self._health and ended == _UNUSABLE and helper.starts == 1:
                        self._stop()  # it has said what is wrong
                        return ended
                    log.error(
                        f"the {helper.name} ended, starting it again", extra={"status": ended}
                    )
            self._check_health_process()
            if not announced:
                ready = _responds(self._server, "/readyz")
                if timeout_at == math.inf and _responds(self._server, "/livez"):
                    timeout_at = time.monotonic() + _READY_TIMEOUT_S
                if ready or time.monotonic() > timeout_at:
                    announce(ready)
                    announced = True

    def _next_signal(self, wait_s: float) -> int | None:
        stderr.flush_pending()
        try:
            return self._signals.get(timeout=wait_s)
        except queue.Empty:
            return None

    def _forward(self, number: int) -> None:
        """Pass a signal to the gateway; HUP to the health process too, which then reloads."""
        reloading = number == signal.SIGHUP
        for child in (self._gateway, self._health) if reloading else (self._gateway,):
            if child.process.poll() is None:
                child.process.send_signal(number)

    def _check_health_process(self) -> None:
        """Kill a health process that hangs, which TERM would not end. It is then restarted."""
        now = time.monotonic()
        if now - self._checked_at < _HEARTBEAT_INTERVAL_S:
            return
        if now - self._checked_at > _FROZEN_S:
            self._awake_since = now  # this process was frozen, and most likely the whole host
        self._checked_at = now
        heartbeat_ns = self._run_dir.health_heartbeat_ns()
        if heartbeat_ns is None or self._health.process.poll() is not None:
            return
        silent_s = min(now - self._awake_since, self._health.age_s(), now - heartbeat_ns / 1e9)
        if silent_s > self._watchdog_s:
            extra = {"silent_s": round(silent_s, 1)}
            log.error("the health process hangs, killing it", extra=extra)
            self._health.process.kill()

    def _stop(self, *, at_once: bool = False) -> int:
        """End the gateway, with its grace unless `at_once`, then the rest.

        Another ending signal ends the grace. Others, as of a rotation of logs, must not.
        """
        gateway = self._gateway.process
        if gateway.poll() is None:
            gateway.send_signal(signal.SIGQUIT if at_once else signal.SIGTERM)
            grace_s = self._server.graceful_timeout_seconds + _BEYOND_GRACE_S
            deadline = time.monotonic() + grace_s
            while gateway.poll() is None and time.monotonic() < deadline:
                if self._next_signal(0.05) in _ENDING:
                    gateway.send_signal(signal.SIGQUIT)
        self._gateway.stop(1.0)
        for helper in self.helpers:
            helper.stop(5.0)
        return 0


def _gunicorn_command() -> list[str]:
    package = Path(nexus.__file__).parent
    files = [
        path
        for path in (package / "gunicorn.conf.py", package.parent / "gunicorn.conf.py")
        if path.exists()
    ]
    return ["-m", "gunicorn", "-c", str(files[0]), "nexus.app:create_app()"]


def _is_of_file(loaded: LoadedConfig, dotted: str) -> bool:
    """Whether a value comes from the file or is the default."""
    return loaded.origins.get(dotted, str(loaded.path)) == str(loaded.path)


def _child_environ(loaded: LoadedConfig, run_dir: RunDirectory) -> dict[str, str]:
    """The environment of the children, with the settings as resolved here, so that all agree."""
    server, logging_ = loaded.config.server, loaded.config.logging
    options = {
        variable: str(getattr(getattr(loaded.config, table), key)).lower()
        for variable, (table, key) in ENVIRONMENT.items()
        if loaded.origins.get(f"{table}.{key}") == COMMAND_LINE
    }
    environ = {
        **os.environ,
        **options,
        "NEXUS_RUN_DIR": str(run_dir.path.absolute()),
        "NEXUS_HOST": server.host,
        "NEXUS_PORT": str(server.port),
        "NEXUS_WORKERS": str(server.workers),
        "NEXUS_GRACEFUL_TIMEOUT": str(server.graceful_timeout_seconds),
        "NEXUS_LOG_LEVEL": logging_.level,
        "NEXUS_LOG_FORMAT": logging_.format,
    }
    if not _is_of_file(loaded, "logging.level"):
        # An option or the environment gave the level; it may have had levels of components.
        levels = [f"nexus::{name}={level}" for name, level in logging_.component_levels.items()]
        environ["NEXUS_LOG_LEVEL"] = ",".join([logging_.level, *levels])
    if loaded.path is not None:
        environ["NEXUS_CONFIG"] = str(loaded.path.absolute())
    return environ


def _check_free(loaded: LoadedConfig, run_dir: RunDirectory) -> None:
    """Raise `ConfigError` if another gateway has the run directory, or a port is taken."""
    if owner := run_dir.owner():
        raise ConfigError(
            f"The run directory {run_dir.path} is in use by {owner}. Stop that gateway, or "
            "give this one another port or its own [server] run_dir."
        )
    server, listen = loaded.config.server, loaded.config.health_check.listen
    _check_port(server.host, server.port, "[server] host and port, or --host and --port")
    if listen != "off":
        _check_port(*listen_address(listen), "[health_check] listen or $NEXUS_HEALTH_LISTEN")


def _check_port(host: str, port: int, key: str) -> None:
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = addresses[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        where = f"{bracketed(host)}:{port}"
        raise ConfigError(
            f"Cannot listen on {where} ({error.strerror}); set another address with {key}."
        ) from error


def _responds(server: Server, path: str) -> bool:
    """Whether the gateway responds to this path with 200."""
    address = (reachable_host(server.host), server.port)
    try:
        with socket.create_connection(address, timeout=1) as sock:
            sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return sock.recv(64).startswith(b"HTTP/1.0 200")
    except OSError:
        return False
