"""Checks of the host for a gateway that is started from here: libraries, limits, variables."""

from __future__ import annotations

import itertools
import platform
import resource
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata

from packaging.requirements import Requirement

from nexus.cli.doctor.findings import Finding, fail, ok, warn
from nexus.cli.output import counted
from nexus.config import Config

_PACKAGE = "nexus-gateway"
_BESIDES = 64  # descriptors of a process that are no request's: files, locks, tables, listeners


def libraries() -> Iterator[Finding]:
    """Whether the installed libraries are those that the package requires."""
    wrong, right = [], []
    for line in metadata.requires(_PACKAGE) or ():
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is not installed")
            continue
        if version in wanted.specifier:
            right.append(f"{wanted.name} {version}")
        else:
            wrong.append(f"{wanted.name} is {version}, and {wanted.specifier} is needed")
    for what in wrong:
        yield fail(
            "libraries",
            f"{what}.",
            "install what requirements.txt pins: pip install -r requirements.txt",
        )
    if not wrong:
        yield ok("libraries", f"Python {platform.python_version()}, {', '.join(right)}")


def descriptors(config: Config) -> Iterator[Finding]:
    """Whether a worker could hold every request: each needs a connection on both sides."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * config.server.max_concurrent_requests + _BESIDES
    if limit == resource.RLIM_INFINITY or limit >= needed:
        yield ok("descriptors", f"{limit:,} for each process")
        return
    yield fail(
        "descriptors",
        f"A process may have {limit:,} open, and "
        f"{counted(config.server.max_concurrent_requests, 'request')} at once may need {needed:,}.",
        f"raise it with `ulimit -n {needed}`, or LimitNOFILE= of the unit"
        + (f" (it may be {most:,} at most)" if limit < most < needed else ""),
    )


def uploads(config: Config) -> Iterator[Finding]:
    """Whether uploads can be stored while they are sent."""
    server = config.server
    directory = server.spool_dir or "$TMPDIR"
    try:
        directory = server.spool_dir or tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=directory):
            free = shutil.disk_usage(directory).free
    except OSError as error:
        yield fail(
            "uploads",
            f"{directory} cannot store them ({error.strerror}).",
            "name a directory that the gateway's user may write to, in [server] spool_dir",
        )
        return
    if free < server.max_upload_bytes:
        yield warn(
            "uploads",
            f"{directory} has {free:,} bytes left, and one may have {server.max_upload_bytes:,}.",
            "name a directory with more room in [server] spool_dir, or lower max_upload_bytes",
        )
        return
    yield ok("uploads", f"{directory} has room for them")


def variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that change how gunicorn, gevent or prometheus_client work."""
    wrong = False
    words = shlex.split(environ.get("GUNICORN_CMD_ARGS", ""))
    for word, following in itertools.pairwise([*words, ""]):
        kind = (
            following if word in ("-k", "--worker-class") else word.removeprefix("--worker-class=")
        )
        if kind == "sync":
            wrong = True
            yield fail(
                "gunicorn",
                "$GUNICORN_CMD_ARGS asks for sync workers, which serve one request at a time.",
                "take the worker class out of it: gunicorn.conf.py names the right one",
            )
    if environ.get("GEVENT_LOOP", "libev").split("-")[0] != "libev":
        wrong = True
        yield warn(
            "gevent",
            f"$GEVENT_LOOP asks for {environ['GEVENT_LOOP']}; Nexus is tested with libev.",
            "unset GEVENT_LOOP",
        )
    if directory := environ.get("PROMETHEUS_MULTIPROC_DIR"):
        wrong = True
        yield fail(
            "prometheus",
            f"$PROMETHEUS_MULTIPROC_DIR is {directory}: metrics there would be in no scrape.",
            "unset PROMETHEUS_MULTIPROC_DIR; the metrics are in the run directory",
        )
    if not wrong:
        yield ok("environment", "no variable disturbs gunicorn, gevent or prometheus_client")
