"""`nexus completions`: what a shell needs to complete our commands."""

from __future__ import annotations

import click


@click.command("completions")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completions(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash  nexus completions bash > ~/.local/share/bash-completion/completions/nexus
    zsh   nexus completions zsh > "${fpath[1]}/_nexus"
    fish  nexus completions fish > ~/.config/fish/completions/nexus.fish
    """
    from click.shell_completion import get_completion_class

    from nexus.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "nexus", "_NEXUS_COMPLETE").source())
