"""The commands by name. A command's module is imported when the command is called."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

import click

from nexus import __version__
from nexus.cli.output import EXIT_STATUSES, print_text, wants_colour
from nexus.config.checking import ConfigError
from nexus.runtime.text import suggest

COMMANDS: dict[str, str] = {
    "serve": "running:serve",
    "demo-backend": "running:demo_backend",
    "reload": "reload:reload_command",
    "status": "status:status",
    "backends": "backends:backends",
    "models": "fleet:models",
    "health": "fleet:health",
    "stats": "stats:stats",
    "history": "history:history",
    "metrics": "metrics:metrics",
    "route": "route:route",
    "chat": "chat:chat",
    "keys": "keys:keys",
    "prices": "prices:prices",
    "budgets": "budgets:budgets",
    "usage": "usage:usage",
    "config": "configuration:config",
    "doctor": "doctor.command:doctor",
    "completions": "completions:completions",
}
"""Name → module and attribute in this folder, in the order of `nexus -h`."""


class Lazy(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(f"nexus.cli.{module}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a hint for a misspelt name."""
        name = args[0] if args else ""
        if name and name not in COMMANDS and not name.startswith("-"):
            hint = suggest(name, COMMANDS) or f"there are {', '.join(COMMANDS)}."
            ctx.fail(f"There is no command {name}; {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Exit statuses: "
    + "; ".join(f"{status}: {meaning}" for status, meaning in EXIT_STATUSES.items())
    + ".",
)
@click.version_option(__version__, "-V", "--version", prog_name="nexus")
@click.pass_context
def cli(context: click.Context, /, **_: Any) -> None:
    """One endpoint for OpenAI's and Anthropic's clients, in front of any LLM backends."""
    context.color = wants_colour()


def main() -> None:
    """Run a command. A bad configuration prints one sentence for each problem, and exits with 2."""
    try:
        cli(prog_name="nexus")
    except ConfigError as error:
        print_text(str(error), err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print_text(f"The output cannot be written ({error.strerror}).", err=True)
        os._exit(1)  # a normal end would try to write the rest
    except KeyboardInterrupt:
        sys.exit(130)
