"""`nexus reload`: has the running gateway read its configuration again."""

from __future__ import annotations

import time
import tomllib
from contextlib import suppress
from pathlib import Path

import click

from nexus.cli.gateway import config_file, config_option, run_directory
from nexus.cli.output import Exit, Failure, Result, counted, returns_result
from nexus.config import ConfigError, load
from nexus.runtime.files import exists

_TIMEOUT_S = 15.0
_POLL_INTERVAL_S = 0.02


@click.command("reload", short_help="Have the gateway read its configuration again.")
@config_option
@click.option(
    "--run-dir",
    metavar="DIR",
    help="The gateway's run directory, if the file no longer leads to it.",
)
@returns_result
def reload_command(config: str | None, run_dir: str | None) -> Result:
    """Have the running gateway read its configuration again.

    A bad configuration changes nothing, and the exit status is 2.
    """
    import msgspec

    from nexus.fleet.reload_report import last_reload

    directory = run_directory(config, run_dir)
    if not directory.health_process_alive():
        load(config)  # a bad file may be why no gateway was found
        raise Failure(
            f"No health process runs for {directory.path}; name the gateway's configuration with "
            "-c. If its port or run directory has changed there, name the old one with --run-dir.",
            status=Exit.UNREACHABLE,
        )
    file = config_file(config)
    own = [] if run_dir else _problems(config)
    before = last_reload(directory.path).count
    directory.request_reload()
    deadline = time.monotonic() + _TIMEOUT_S
    while (outcome := last_reload(directory.path)).count == before:
        if time.monotonic() > deadline:
            raise Failure(
                f"The health process reported no result within {_TIMEOUT_S:.0f} s; see its log.",
                status=Exit.NEGATIVE,
            )
        time.sleep(_POLL_INTERVAL_S)
    failure, lines, used = None, [], Path(outcome.file)
    if outcome.problems:
        lines = [*outcome.problems, "Nothing was changed; the gateway goes on as before."]
    elif own:
        lines = [*own, f"The gateway of {directory.path} was reloaded; it uses another file."]
    elif not run_dir and outcome.file and _is_other(used, than=file):
        lines = [
            f"{file} was not read: the gateway of {directory.path} was reloaded; it uses {used}. "
            f"Change that file, or start the gateway again with {file}."
        ]
    if lines:
        failure = Failure("\n".join(lines), status=Exit.USAGE)
    text = "" if failure else f"Reloaded: {counted(outcome.backends, 'backend')}."
    if text and outcome.restart:
        text += f"\nThese take effect at the next start: {', '.join(outcome.restart)}."
    return Result(
        {"reloaded": not lines, **msgspec.to_builtins(outcome)},
        text,
        notes=[f"warning: {warning}" for warning in outcome.warnings],
        failure=failure,
    )


def _is_other(used: Path, *, than: Path) -> bool:
    """Whether they are two files of this host; a gateway in a container may name a path there."""
    return exists(used) and exists(than) and not used.samefile(than)


def _problems(config: str | None) -> list[str]:
    """Why the file cannot be read, so that it may not have led to the gateway that uses it."""
    try:
        with suppress(OSError, ValueError, RecursionError):
            tomllib.loads(config_file(config).read_text(encoding="utf-8-sig"))
            return []  # the gateway says what else is wrong with it
        load(config)
    except ConfigError as error:
        return error.problems
    return []
