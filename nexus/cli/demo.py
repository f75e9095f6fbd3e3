"""Running one demo backend in the foreground."""

from __future__ import annotations

import signal

import click
import gevent
import gevent.event

from nexus.config import ConfigError
from nexus.config.addresses import bracketed
from nexus.runtime.parent_death import end_with_parent
from nexus_demo.faults import FaultSpec
from nexus_demo.server import Behaviour, DemoBackend


def run_demo(manner: Behaviour, fault: FaultSpec, *, host: str, port: int) -> None:
    """Serve until TERM or INT; the first line printed is the address."""
    end_with_parent()
    try:
        server = DemoBackend(manner, fault).serve(host, port)
    except OSError as error:
        why = str(error.strerror).partition(": (")[0]  # gevent adds the address
        raise ConfigError(
            f"The demo backend cannot listen on {host}:{port} ({why}); choose another --port."
        ) from error
    stop = gevent.event.Event()
    gevent.signal_handler(signal.SIGTERM, stop.set)
    gevent.signal_handler(signal.SIGINT, stop.set)
    click.echo(f"http://{bracketed(host)}:{server.server_port}")
    stop.wait()
    server.stop(timeout=0)
