"""The commands by name. A command's file is imported when it is called, and what it needs when it runs: the simple ones
start fast."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from nexus import __version__
from nexus.cli.output import EXIT_STATUSES, print_text, wants_colour
from nexus.config.checking import ConfigError

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
    "config": "configuration:config",
    "doctor": "doctor.command:doctor",
    "completions": "completions:completions",
}
"""Name → module and attribute in this folder, in the order in which `nexus -h` shows them."""


class Lazy(click.Group):
    """A group that imports a command when it is asked for."""

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
        """As click does, with a hint for a name that is misspelt."""
        name = args[0] if args else ""
        if name and name not in COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}."
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
    """One OpenAI-compatible endpoint in front of a fleet of LLM backends."""
    context.color = wants_colour()


def main() -> None:
    """Run a command; bad configuration is one sentence for each fault, and exit status 2."""
    try:
        cli(prog_name="nexus")
    except ConfigError as error:
        print_text(str(error), err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
