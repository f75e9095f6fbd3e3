"""Checks of one gateway: configuration, secrets, run directory, ports, processes."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from nexus.cli.doctor.findings import Finding, fail, ok, warn
from nexus.cli.gateway import Gateway
from nexus.cli.http_client import NoResponse, http_request
from nexus.cli.output import Failure, counted
from nexus.cli.prices import unpriced_models
from nexus.cli.samples import exhausted_limits, limit_text, parse
from nexus.config import ConfigError, LoadedConfig, load
from nexus.config.request_log_records import JOURNAL, RequestLog
from nexus.config.secrets import secret
from nexus.fleet.problems import read_problems
from nexus.fleet.run_directory import RunDirectory, RunDirectoryError
from nexus.fleet.snapshot import SnapshotReader
from nexus.runtime.journal import SOCKET

_MIN_FREE_BYTES = 16 * 1024 * 1024
_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


def configuration(given: str | None) -> tuple[LoadedConfig | None, list[Finding]]:
    """The configuration; None if it cannot be used."""
    try:
        loaded = load(given)
    except ConfigError as error:
        fix = "correct it; `nexus config check` checks it again"
        return None, [fail("configuration", problem, fix) for problem in error.problems]
    warnings = [
        warn("configuration", warning, "change the configuration, or leave it: the gateway starts")
        for warning in loaded.warnings
    ]
    name = (
        str(loaded.path) if loaded.path else "no file; the demo fleet is what `nexus serve` starts"
    )
    return loaded, [
        *warnings,
        ok("configuration", f"{name}, {counted(len(loaded.config.backends), 'backend')}"),
    ]


def secrets(loaded: LoadedConfig, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether every key that a backend names exists."""
    named = [
        (backend.name, backend.api_key_env)
        for backend in loaded.config.backends
        if backend.api_key_env
    ]
    missing = [(name, key) for name, key in named if key and secret(key, environ) is None]
    for name, key in missing:
        yield fail(
            "secrets",
            f"The key of {name} should be in ${key}, which is not set here.",
            f"export {key}, or pass it with LoadCredential={key}:FILE in both units",
        )
    if named and not missing:
        yield ok("secrets", f"{counted(len(named), 'key')} found")


def request_log(settings: RequestLog) -> Iterator[Finding]:
    """Whether the request log can be written by this user."""
    if not settings.path:
        return
    if settings.path == JOURNAL:
        if SOCKET.exists():
            yield ok("request log", "in the journal")
        else:
            fix = "set [request_log] path to a file, or run the gateway under systemd"
            yield fail("request log", f"There is no journal: {SOCKET} does not exist.", fix)
        return
    path = Path(settings.path)
    if not path.parent.is_dir():
        yield fail("request log", f"{path.parent} does not exist.", "make it, for this user only")
    elif not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        fix = "run this as the gateway's user, or let that user write there"
        yield fail("request log", f"This user may not write {path} and rotate it.", fix)
    else:
        yield ok("request log", str(path))


def prices(loaded: LoadedConfig, run_dir: RunDirectory) -> Iterator[Finding]:
    """Whether all models of the fleet have a price, if there are any prices."""
    costs = loaded.config.costs
    snapshot = SnapshotReader(run_dir.path).read() if run_dir.path.is_dir() else None
    if not costs.price or snapshot is None:
        return
    unpriced, offered = unpriced_models(costs, snapshot)
    if unpriced:
        yield warn(
            "prices",
            f"{counted(len(unpriced), 'model')} of {offered} have no price.",
            "`nexus prices check` names them; add a [[price]]",
        )
    else:
        yield ok("prices", f"all models have one: {offered}")


def run_directory(run_dir: RunDirectory) -> Iterator[Finding]:
    path = run_dir.path
    elsewhere = "name another in [server] run_dir or $NEXUS_RUN_DIR"
    try:
        exists = run_dir.check()
    except RunDirectoryError as error:
        what, _, fix = str(error).partition("; ")
        yield fail("run directory", f"{what}.", fix.rstrip("."))
        return
    if not exists:
        parent = next(one for one in path.parents if one.exists())
        if os.access(parent, os.W_OK):
            yield ok("run directory", f"{path} will be made at the start")
        else:
            yield fail(
                "run directory",
                f"{path} cannot be made: this user may not write to {parent}.",
                elsewhere,
            )
        return
    if (free := shutil.disk_usage(path).free) < _MIN_FREE_BYTES:
        fix = f"make space: {_MIN_FREE_BYTES // 1024 // 1024} MiB at least, or {elsewhere}"
        yield fail("run directory", f"Only {free // 1024:,} KiB are free in {path}.", fix)
    kind = _file_system(path)
    if kind not in _MEMORY_FILE_SYSTEMS:
        yield warn(
            "run directory",
            f"{path} is on a disk ({kind}), not in memory.",
            "name one under /run or /dev/shm",
        )
    else:
        yield ok("run directory", f"{path}, in memory")


def _file_system(path: Path) -> str:
    """The type of the file system of a path, from `/proc/mounts`."""
    best, kind = -1, "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        mount, its_kind = line.split()[1:3]
        if path.resolve().is_relative_to(mount) and len(mount) >= best:
            best, kind = len(mount), its_kind
    return kind


def addresses(gateway: Gateway) -> Iterator[Finding]:
    """Whether the ports are free, or in use by this gateway."""
    running, health = None, False
    if gateway.run_dir and gateway.run_dir.path.is_dir():
        running, health = gateway.run_dir.owner(), gateway.run_dir.health_process_alive()
    for area, base, key in (
        ("address", gateway.base, "[server] port or $NEXUS_PORT"),
        ("operations address", gateway.operations, "[health_check] listen or $NEXUS_HEALTH_LISTEN"),
    ):
        if base is None:
            continue
        fix = f"stop it, or name another in {key}"
        foreign = fail(area, f"Something that is not Nexus has {base}.", fix)
        try:
            response = http_request("GET", f"{base}/livez", timeout_s=2)
        except NoResponse as why:
            if running:
                fix = (
                    f"see its log (`journalctl -u nexus` under systemd); commands find it by {key}"
                )
                yield fail(area, f"{running} runs, and does not respond at {base} ({why}).", fix)
            elif health and base == gateway.base:
                fix = "start the gateway, or see why its workers end: `journalctl -u nexus`"
                yield fail(area, f"The health process runs, but no worker responds at {base}.", fix)
            elif _accepts_connections(base):
                yield foreign
            else:
                yield ok(area, f"{base} is free; no gateway runs")
            continue
        if response.status != 200 or b"ok" not in response.content:
            yield foreign
        elif not running and not health:
            yield fail(area, f"Another gateway has {base}.", fix)
        else:
            yield ok(area, f"{base} responds")


def _accepts_connections(base: str) -> bool:
    host, _, port = base.rpartition("//")[2].rpartition(":")
    with closing(socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET)) as sock:
        sock.settimeout(2)
        return sock.connect_ex((host.strip("[]"), int(port))) == 0


def limits(gateway: Gateway) -> Iterator[Finding]:
    """The limits of a running gateway that are used up."""
    try:
        samples = parse(gateway.get("/metrics").content.decode())
    except Failure:
        return
    for limit in exhausted_limits(samples):
        fix = "raise it in the configuration if the use is intended, and run `nexus reload`"
        yield Finding("limit", "warn", f"{limit_text(limit)}.", fix)


def problems(run_dir: RunDirectory) -> Iterator[Finding]:
    """The problems that a running gateway reports."""
    alive = run_dir.path.is_dir() and run_dir.health_process_alive()
    if not alive and not (run_dir.path.is_dir() and run_dir.owner()):
        return
    if alive:
        yield ok("health process", f"runs (pid {run_dir.health_process_pid()})")
    for one in read_problems(run_dir.path, health_process_alive=alive).problems:
        area = f"backend {one.subject}" if one.code.startswith("backend_") else one.subject
        yield Finding(area, "fail" if one.severity == "error" else "warn", one.text, one.hint)
