"""`nexus serve`: gunicorn and the health process under one command."""

from __future__ import annotations

import json
import logging
import os
import queue
import shlex
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nexus
from nexus.cli.output import counted
from nexus.config import ConfigError, LoadedConfig, load
from nexus.config.addresses import bracketed, listen_address, url_to
from nexus.config.loading import COMMAND_LINE
from nexus.config.records import ENVIRONMENT, NOT_SPOKEN, Server
from nexus.fleet.run_directory import RunDirectory, RunDirectoryError
from nexus.fleet.snapshot import SnapshotReader
from nexus.routing.names import is_pattern
from nexus.runtime import log as logs
from nexus.runtime import stderr
from nexus.runtime.host import raise_descriptor_limit
from nexus.server.child import Child

log = logging.getLogger("nexus.serve")

_PASSED_ON = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2)
"""What gunicorn's master makes of them is what is meant."""
_DEMO_FLEET = {"demo-1": ("demo-small", "demo-large"), "demo-2": ("demo-small",)}
_PATIENCE_S = 5.0
"""When no backend can be used by then, the first screen says that instead."""
_WATCH_EVERY_S = 1.0
_FROZEN_S = 5.0
_BEYOND_GRACE_S = 10.0
"""gunicorn ends its workers within the grace; this is for gunicorn itself."""


def serve(config: str | None, overrides: Mapping[str, Any]) -> int:
    """Run until TERM or INT. Returns the exit status; 2 where the configuration or a port cannot be used."""
    stderr.make_nonblocking()
    raise_descriptor_limit()
    loaded = load(config, overrides=overrides)
    settings = loaded.config
    logs.configure(level=settings.logging.level, kind=settings.logging.format)
    run_dir = RunDirectory.of(settings)
    try:
        run_dir.prepare()
    except RunDirectoryError as error:
        raise ConfigError([str(error)]) from error
    _refuse_what_is_taken(loaded, run_dir)

    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (*_PASSED_ON, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, lambda received, _: signals.put(received))

    environ = _environment(loaded, run_dir)
    demos: list[Child] = []
    try:
        if loaded.path is None and not settings.backends:
            demos = _start_demo_fleet(run_dir, environ)
        health = Child("health process", ["-m", "nexus.health"], environ)
        gateway = Child("gateway", _gunicorn(), environ)
        supervisor = _Supervisor(
            signals,
            gateway,
            [health, *demos],
            run_dir=run_dir,
            grace_s=settings.server.graceful_timeout_seconds,
            watchdog_s=settings.health_check.watchdog_seconds,
        )
        return supervisor.run(
            lambda ready: _first_screen(loaded, run_dir, demo=bool(demos), ready=ready),
            settings.server,
        )
    finally:
        for child in demos:
            child.stop(1.0)


def _gunicorn() -> list[str]:
    here = Path(nexus.__file__).parent
    files = [
        path
        for path in (here / "gunicorn.conf.py", here.parent / "gunicorn.conf.py")
        if path.exists()
    ]
    return ["-m", "gunicorn", "-c", str(files[0]), "nexus.app:create_app()"]


def _environment(loaded: LoadedConfig, run_dir: RunDirectory) -> dict[str, str]:
    """What the children are told: the settings as they were resolved here, so that all agree."""
    server, logging_ = loaded.config.server, loaded.config.logging
    given = {
        variable: str(getattr(getattr(loaded.config, table), key)).lower()
        for variable, (table, key) in ENVIRONMENT.items()
        if loaded.origins.get(f"{table}.{key}") == COMMAND_LINE
    }
    environ = {
        **os.environ,
        **given,
        "NEXUS_RUN_DIR": str(run_dir.path.absolute()),
        "NEXUS_HOST": server.host,
        "NEXUS_PORT": str(server.port),
        "NEXUS_WORKERS": str(server.workers),
        "NEXUS_GRACEFUL_TIMEOUT": str(server.graceful_timeout_seconds),
        "NEXUS_LOG_LEVEL": logging_.level,
        "NEXUS_LOG_FORMAT": logging_.format,
    }
    if loaded.origins.get("logging.level", str(loaded.path)) != str(
        loaded.path
    ):  # given by option or environment
        parts = [f"nexus::{name}={level}" for name, level in logging_.component_levels.items()]
        environ["NEXUS_LOG_LEVEL"] = ",".join([logging_.level, *parts])
    if loaded.path is not None:
        environ["NEXUS_CONFIG"] = str(loaded.path.absolute())
    return environ


def _refuse_what_is_taken(loaded: LoadedConfig, run_dir: RunDirectory) -> None:
    if owner := run_dir.owner():
        raise ConfigError(
            [
                f"The run directory {run_dir.path} is in use by {owner}; stop that one, or give this one another port "
                "or a directory of its own in [server] run_dir."
            ]
        )
    settings = loaded.config
    _try_port(settings.server.host, settings.server.port, "[server] port or --port")
    if settings.health_check.listen != "off":
        _try_port(
            *listen_address(settings.health_check.listen),
            "[health_check] listen or $NEXUS_HEALTH_LISTEN",
        )


def _try_port(host: str, port: int, key: str) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            [
                f"{bracketed(host)}:{port} cannot be listened on ({error.strerror}); name another with {key}."
            ]
        ) from error


def _start_demo_fleet(run_dir: RunDirectory, environ: dict[str, str]) -> list[Child]:
    """Two demo backends, and a configuration that names them; `environ` is changed to point at it."""
    demos, lines = [], []
    for name, models in _DEMO_FLEET.items():
        options = [word for model in models for word in ("--model", model)]
        demos.append(
            Child(
                name,
                ["-m", "nexus", "demo-backend", "--name", name, *options],
                environ,
                capture=True,
            )
        )
    for child in demos:
        assert child.process.stdout is not None
        address = child.process.stdout.readline().strip()
        if not address:
            raise ConfigError([f"The demo backend {child.name} did not start."])
        child.pin(*listen_address(address.removeprefix("http://")))
        lines.append(f'[[backends]]\nname = "{child.name}"\nurl = "{address}"\ntype = "vllm"\n')
    file = run_dir.path / "demo.toml"
    try:
        file.write_text("\n".join(lines))
    except OSError as error:
        raise ConfigError([f"{file} cannot be written ({error.strerror})."]) from error
    environ["NEXUS_CONFIG"] = str(file.absolute())
    return demos


class _Supervisor:
    """Keeps the helpers running for as long as the gateway runs, and ends all in order."""

    def __init__(
        self,
        signals: queue.SimpleQueue[int],
        gateway: Child,
        helpers: list[Child],
        *,
        run_dir: RunDirectory,
        grace_s: float,
        watchdog_s: float,
    ) -> None:
        """The first of `helpers` is the health process."""
        self._signals = signals
        self._gateway = gateway
        self._helpers = helpers
        self._run_dir = run_dir
        self._grace_s = grace_s
        self._watchdog_s = watchdog_s
        self._watched_at = self._awake_since = time.monotonic()

    def run(self, announce: Callable[[bool], None], server: Server) -> int:
        """`announce` is called once: when the gateway is ready, or when it serves and has had time to be."""
        announced, patience_ends = False, time.monotonic() + _PATIENCE_S
        while True:
            received = self._next_signal(0.1)
            if received == signal.SIGHUP:
                self._pass_on(received, self._gateway, self._helpers[0])
            elif received in _PASSED_ON:
                self._pass_on(received, self._gateway)
            elif received is not None:
                return self._stop(at_once=received == signal.SIGQUIT)
            status = self._gateway.ended()
            if status is not None:
                log.error("the gateway ended by itself", extra={"status": status})
                self._stop()
                return status or 1
            for helper in self._helpers:
                self._keep_running(helper)
            self._watch_health_process()
            if not announced:
                ready = _answers(server, "/readyz")
                if ready or (time.monotonic() > patience_ends and _answers(server, "/livez")):
                    announce(ready)
                    announced = True

    def _next_signal(self, wait_s: float) -> int | None:
        stderr.flush_pending()
        try:
            return self._signals.get(timeout=wait_s)
        except queue.Empty:
            return None

    @staticmethod
    def _pass_on(number: int, *children: Child) -> None:
        for child in children:
            if child.ended() is None:
                child.process.send_signal(number)

    def _keep_running(self, helper: Child) -> None:
        status = helper.ended()
        if status is None:
            return
        first = not helper.waiting
        if time.monotonic() >= helper.due():
            helper.restart()
        elif first:
            log.error(f"the {helper.name} ended, starting it again", extra={"status": status})

    def _watch_health_process(self) -> None:
        """Kill one that hangs, which no TERM would end; it is then started again as any that has ended."""
        now = time.monotonic()
        if now - self._watched_at < _WATCH_EVERY_S:
            return
        if now - self._watched_at > _FROZEN_S:
            self._awake_since = (
                now  # we stood still ourselves, and with us most likely the whole host
            )
        self._watched_at = now
        health, heartbeat_ns = self._helpers[0], self._run_dir.health_heartbeat_ns()
        if heartbeat_ns is None or health.ended() is not None:
            return
        silent_s = min(now - self._awake_since, health.age_s(), now - heartbeat_ns / 1e9)
        if silent_s > self._watchdog_s:
            log.error(
                "the health process hangs, killing it", extra={"silent_s": round(silent_s, 1)}
            )
            health.process.kill()

    def _stop(self, *, at_once: bool = False) -> int:
        """The gateway first, with its grace unless `at_once`; then the rest. A second signal ends the grace."""
        gateway = self._gateway.process
        if gateway.poll() is None:
            gateway.send_signal(signal.SIGQUIT if at_once else signal.SIGTERM)
            deadline = time.monotonic() + self._grace_s + _BEYOND_GRACE_S
            while gateway.poll() is None and time.monotonic() < deadline:
                if self._next_signal(0.05) is not None:
                    gateway.send_signal(signal.SIGQUIT)
        self._gateway.stop(1.0)
        for helper in self._helpers:
            helper.stop(5.0)
        return 0


def _reachable(server: Server) -> str:
    """An address by which the gateway can be reached from here."""
    return (
        "127.0.0.1"
        if server.host in ("0.0.0.0", "")
        else "::1"
        if server.host == "::"
        else server.host
    )


def _answers(server: Server, path: str) -> bool:
    """Whether the gateway answers 200 there."""
    try:
        with socket.create_connection((_reachable(server), server.port), timeout=1) as sock:
            sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return sock.recv(64).startswith(b"HTTP/1.0 200")
    except OSError:
        return False


def _model_to_try(run_dir: RunDirectory) -> str | None:
    """The first model of the published fleet that can chat as far as is known; None if there is none yet."""
    snapshot = SnapshotReader(run_dir.path).read()
    for backend in snapshot.backends if snapshot else ():
        for model in backend.models if backend.usable else ():
            if (not model.tasks or "chat" in model.tasks) and not is_pattern(model.name):
                return model.name
    return None


def _first_screen(loaded: LoadedConfig, run_dir: RunDirectory, *, demo: bool, ready: bool) -> None:
    """What a person wants to know first: what runs, where, how to try it, where the figures are."""
    server, listen = loaded.config.server, loaded.config.health_check.listen
    base = url_to(server.host, server.port)
    served = [backend for backend in loaded.config.backends if backend.type not in NOT_SPOKEN]
    left_out = [
        f"{backend.name} ({backend.type})"
        for backend in loaded.config.backends
        if backend not in served
    ]
    named = f"{counted(len(served), 'backend')} from {loaded.path or 'the defaults'}"
    if left_out:
        named += f"; {', '.join(left_out)} left out, because Nexus does not speak that protocol yet"
    backends = "two demo backends that make up text" if demo else named
    messages = [{"role": "user", "content": "Hello!"}]
    body = json.dumps(
        {"model": _model_to_try(run_dir) or "YOUR-MODEL", "messages": messages}, ensure_ascii=False
    )
    hint = "no nexus.toml and no backend given; `nexus config init` writes one" if demo else None
    if not ready:
        hint = f"none of them can be used yet; the log above and {base}/readyz?verbose say why"
    lines = [
        "",
        f"  Nexus {nexus.__version__} is {'ready' if ready else 'running'}, in front of {backends}.",
        *([f"  ({hint})"] if hint else []),
        "",
        f"    endpoint   {base}/v1        (listens on {bracketed(server.host)}, without authentication)",
        f"    dashboard  {base}/",
        f"    figures    {base}/metrics   {base}/v1/stats",
        f"    operations {url_to(*listen_address(listen))}/metrics, also when every worker is busy"
        if listen != "off"
        else "    operations port off",
        f"    state      {run_dir.path}",
        "",
        "  Try it:",
        "",
        f"    curl {base}/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}",
        "",
        "  Ctrl-C stops it.",
        "",
    ]
    stderr.NonBlockingText(1).write("\n".join([*lines, ""]))
