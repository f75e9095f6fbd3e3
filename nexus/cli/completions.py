"""`nexus completions`: what a shell needs to complete our commands."""

from __future__ import annotations

import click

_POWERSHELL = """\
Register-ArgumentCompleter -Native -CommandName nexus -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements | ForEach-Object { $_.Extent.Text })
    $env:_NEXUS_COMPLETE = 'bash_complete'
    $env:COMP_WORDS = $words -join ' '
    $env:COMP_CWORD = if ($wordToComplete) { $words.Count - 1 } else { $words.Count }
    nexus | ForEach-Object {
        $value = ($_ -split ',', 2)[1]
        [System.Management.Automation.CompletionResult]::new(
            $value, $value, 'ParameterValue', $value)
    }
    Remove-Item Env:_NEXUS_COMPLETE, Env:COMP_WORDS, Env:COMP_CWORD
}
"""
_ELVISH = """\
use str
set edit:completion:arg-completer[nexus] = {|@words|
    var at = (to-string (- (count $words) 1))
    e:env _NEXUS_COMPLETE=bash_complete COMP_WORDS=(str:join ' ' $words) COMP_CWORD=$at nexus |
        each {|line| put [(str:split &max=2 ',' $line)][1] }
}
"""
_SCRIPTS = {"elvish": _ELVISH, "powershell": _POWERSHELL}
"""Scripts for shells that click does not support, in the form of its script for bash."""


@click.command("completions")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish", "elvish", "powershell"]))
def completions(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash        nexus completions bash > ~/.local/share/bash-completion/completions/nexus
    zsh         nexus completions zsh > "${fpath[1]}/_nexus"
    fish        nexus completions fish > ~/.config/fish/completions/nexus.fish
    elvish      nexus completions elvish >> ~/.config/elvish/rc.elv
    powershell  nexus completions powershell >> $PROFILE
    """
    if script := _SCRIPTS.get(shell):
        click.echo(script, nl=False)
        return
    from click.shell_completion import get_completion_class

    from nexus.cli.main import cli

    shell_class = get_completion_class(shell)
    assert shell_class is not None
    click.echo(shell_class(cli, {}, "nexus", "_NEXUS_COMPLETE").source())
