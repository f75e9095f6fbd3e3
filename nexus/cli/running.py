"""`nexus serve` and `nexus demo-backend`: commands that run until they are stopped."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

import click

from nexus.cli.gateway import config_option
from nexus.config import ConfigError


@click.command("serve", short_help="Start the gateway and its health process.")
@config_option
@click.option("-H", "--host", help="Address to listen on.")
@click.option("-p", "--port", type=int, help="Port to listen on.")
@click.option("--workers", type=int, help="Worker processes; 0 for one per core.")
@click.option(
    "-l",
    "--log-level",
    metavar="LEVEL",
    help="trace, debug, info, warn or error; also info,nexus::health=debug.",
)
@click.option("--no-discovery", is_flag=True, help="No effect: Nexus discovers no backends.")
@click.option(
    "--no-health-check",
    is_flag=True,
    help="Count every backend as healthy, whatever its probes say.",
)
def serve(
    config: str | None,
    host: str | None,
    port: int | None,
    workers: int | None,
    log_level: str | None,
    no_discovery: bool,
    no_health_check: bool,
) -> None:
    """Start the gateway and its health process, and keep both running."""
    from nexus.cli.serve import serve as run

    overrides = {
        "server.host": host,
        "server.port": port,
        "server.workers": workers,
        "logging.level": log_level,
        "discovery.enabled": False if no_discovery else None,
        "health_check.enabled": False if no_health_check else None,
    }
    sys.exit(run(config, overrides))


@click.command("demo-backend", short_help="Run a small backend that makes up text.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="0 takes a free one, and prints it.",
)
@click.option("--name", default="demo", show_default=True, help="Shown as the owner of its models.")
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("demo-small",),
    show_default=True,
    help="May be given again.",
)
@click.option(
    "--pace", default=40.0, show_default=True, help="Events a second in streams; 0 for no pause."
)
@click.option("--length", default=40, show_default=True, help="Words of a response.")
@click.option(
    "--usage",
    default="asked",
    show_default=True,
    type=click.Choice(["asked", "always", "never"]),
    help="When streams report token usage.",
)
@click.option(
    "--kind",
    default="any",
    show_default=True,
    type=click.Choice(["any", "ollama", "llamacpp", "vllm", "generic"]),
    help="Whose management paths it has.",
)
@click.option(
    "--says",
    type=click.File(),
    metavar="FILE",
    help="JSON: path → response to a GET there, such as a list of models; null for 404.",
)
@click.option(
    "--cache-blocks",
    default=0,
    show_default=True,
    help="Blocks of 256 characters in a simulated prefix cache; 0 for none.",
)
@click.option(
    "--prefill-ms",
    default=1.0,
    show_default=True,
    help="Delay of the response for each block that is not cached.",
)
@click.option(
    "--slots", default=8, show_default=True, help="Requests worked on at once, with a cache."
)
@click.option("--seed", default=0, show_default=True, help="The same seed says and does the same.")
@click.option(
    "--fault",
    default="",
    metavar="SPEC",
    help="Such as status=503,rate=0.3; also the header x-demo-fault.",
)
def demo_backend(host: str, port: int, fault: str, says: TextIO | None, **manner: Any) -> None:
    """Run a small OpenAI-compatible backend that generates text, and misbehaves on request."""
    from nexus.cli.demo import run_demo
    from nexus_demo.faults import FaultSpec
    from nexus_demo.server import Behaviour

    try:
        spec = FaultSpec.parse(fault)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        answers = json.load(says) if says is not None else {}
    except ValueError as error:
        raise ConfigError(f"--says: this is not JSON ({error}).") from error
    run_demo(Behaviour(says=answers, **manner), spec, host=host, port=port)
