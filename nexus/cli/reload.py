"""`nexus reload`: the running gateway takes up its configuration anew."""

from __future__ import annotations

import time

import click

from nexus.cli.gateway import config_option, run_directory
from nexus.cli.output import Exit, Failure, counted, json_option, print_text
from nexus.config import load

_PATIENCE_S = 15.0


@click.command("reload", short_help="Have the gateway take up its configuration anew.")
@config_option
@click.option(
    "--run-dir",
    metavar="DIR",
    help="The gateway's run directory, where the file no longer leads there.",
)
@json_option
def reload_command(config: str | None, run_dir: str | None, as_json: bool) -> None:
    """Have the running gateway take up its configuration anew; a bad one changes nothing, and the exit status is 2."""
    import msgspec

    from nexus.fleet.reload_report import last_reload

    directory = run_directory(config, run_dir)
    if not directory.health_process_alive():
        load(config)  # says what is wrong with the file, where that is why nothing was found
        raise Failure(
            f"No health process runs for {directory.path}; name the gateway's configuration with -c, "
            "or, where its port or run directory has changed in there, the old one with --run-dir.",
            status=Exit.UNREACHABLE,
        )
    before = last_reload(directory.path).count
    directory.request_reload()
    deadline = time.monotonic() + _PATIENCE_S
    while (outcome := last_reload(directory.path)).count == before:
        if time.monotonic() > deadline:
            raise Failure(
                f"The health process did not say within {_PATIENCE_S:.0f} s how it went; its log does.",
                status=Exit.NEGATIVE,
            )
        time.sleep(0.02)
    if as_json:
        print_text(
            msgspec.json.encode(
                {"reloaded": not outcome.problems, **msgspec.to_builtins(outcome)}
            ).decode()
        )
    for warning in outcome.warnings:
        print_text(f"warning: {warning}", err=True)
    if outcome.problems:
        lines = [*outcome.problems, "Nothing was changed; the gateway goes on as before."]
        raise Failure("\n".join(lines), status=Exit.USAGE)
    if not as_json:
        print_text(f"Reloaded: {counted(outcome.backends, 'backend')}.")
        if outcome.restart:
            print_text(
                f"These take effect when the gateway is started again: {', '.join(outcome.restart)}."
            )
