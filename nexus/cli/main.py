"""The commands. Each imports what it needs when it runs, so that the simple ones start fast."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nexus import __version__
from nexus.config.loading import ConfigError

_CONFIG = click.option(
    "-c", "--config", "config", metavar="FILE", help="Configuration file [nexus.toml, if there is one]."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nexus")
def cli() -> None:
    """One OpenAI-compatible endpoint in front of a fleet of LLM backends."""


@cli.command()
@_CONFIG
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on.")
@click.option("--workers", type=int, help="Worker processes; 0 for one per core.")
def serve(config: str | None, host: str | None, port: int | None, workers: int | None) -> None:
    """Start the gateway and its health process, and keep both running."""
    from nexus.cli.serve import serve as run

    sys.exit(run(config, {"server.host": host, "server.port": port, "server.workers": workers}))


_JSON = click.option("--json", "as_json", is_flag=True, help="For machines.")


@cli.command("reload")
@_CONFIG
@click.option("--run-dir", metavar="DIR", help="The gateway's run directory, where the file no longer leads there.")
@_JSON
def reload_command(config: str | None, run_dir: str | None, as_json: bool) -> None:
    """Have the running gateway take up its configuration anew; a bad one changes nothing, and the exit status is 2."""
    from nexus.cli.operate import reload

    sys.exit(reload(config, run_dir_given=run_dir, as_json=as_json))


@cli.group("route")
def route_group() -> None:
    """What the router would do."""


@route_group.command("explain")
@click.argument("model")
@_CONFIG
@click.option("--body", metavar="FILE", help="A request body, for what it asks of the model; - reads standard input.")
@click.option("--flexible", is_flag=True, help="As with the header X-Nexus-Flexible.")
@_JSON
def route_explain_command(model: str, config: str | None, body: str | None, flexible: bool, as_json: bool) -> None:
    """Show every backend with its score or why it is out, and in which order they would be tried."""
    from nexus.cli.operate import route_explain

    sys.exit(route_explain(config, model, body=body, flexible=flexible, as_json=as_json))


@cli.group("config")
def config_group() -> None:
    """Write a configuration, or check one."""


@config_group.command("check")
@click.argument("file", required=False)
@_CONFIG
def config_check(file: str | None, config: str | None) -> None:
    """Say whether a configuration can be used; exit status 2 where it cannot."""
    from nexus.config import load

    loaded = load(file or config)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    count = len(loaded.config.backends)
    click.echo(f"{loaded.path or 'defaults'}: ok, {count} backend{'' if count == 1 else 's'}.")


@config_group.command("init")
@click.option(
    "-o", "--output", default="nexus.toml", show_default=True, metavar="FILE", help="Where to write; - prints."
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def config_init(output: str, force: bool) -> None:
    """Write a commented configuration with every key and its default."""
    from nexus.config.template import template

    if output == "-":
        click.echo(template(), nl=False)
        return
    path = Path(output)
    if path.exists() and not force:
        raise ConfigError([f"{path} exists already; --force replaces it."])
    path.write_text(template(), encoding="utf-8")
    click.echo(f"Wrote {path}; name your backends in it, then run `nexus serve`.")


@cli.group("metrics")
def metrics_group() -> None:
    """The metrics that there are, and how many series they can have."""


@metrics_group.command("list")
@_JSON
def metrics_list(as_json: bool) -> None:
    """List every family with its type, meaning and labels."""
    from nexus.cli.metrics import show_list

    show_list(as_json=as_json)


@metrics_group.command("bound")
@_CONFIG
@_JSON
def metrics_bound(config: str | None, as_json: bool) -> None:
    """Say how many series the configuration can have at most."""
    from nexus.cli.metrics import show_bound
    from nexus.config import load

    show_bound(load(config).config, as_json=as_json)


@cli.command("demo-backend")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, show_default=True, help="0 takes a free one, and prints it.")
@click.option("--name", default="demo", show_default=True, help="Shown as the owner of its models.")
@click.option(
    "--model", "models", multiple=True, default=("demo-small",), show_default=True, help="May be given again."
)
@click.option("--pace", default=40.0, show_default=True, help="Events a second in streams; 0 for no pause.")
@click.option("--length", default=40, show_default=True, help="Words of an answer.")
@click.option("--usage", default="asked", type=click.Choice(["asked", "always", "never"]), show_default=True)
@click.option("--seed", default=0, show_default=True, help="The same seed says and does the same.")
@click.option("--fault", default="", metavar="SPEC", help="Such as status=503,rate=0.3; also the header x-demo-fault.")
def demo_backend(
    host: str,
    port: int,
    name: str,
    models: tuple[str, ...],
    pace: float,
    length: int,
    usage: str,
    seed: int,
    fault: str,
) -> None:
    """Run a small OpenAI-compatible backend that makes up text, and misbehaves on request."""
    from nexus.cli.demo import run_demo
    from nexus.demo.faults import FaultSpec
    from nexus.demo.server import Manner

    try:
        spec = FaultSpec.parse(fault)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    manner = Manner(name=name, models=models, pace=pace, length=length, usage=usage, seed=seed)
    run_demo(manner, spec, host=host, port=port)


def main() -> None:
    """Run a command; bad configuration is one sentence for each fault, and exit status 2."""
    try:
        cli()
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
