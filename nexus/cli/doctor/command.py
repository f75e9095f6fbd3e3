"""`nexus doctor`: what is wrong here, and the mend for each thing; it changes nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict

import click

from nexus.cli.doctor.findings import Finding
from nexus.cli.gateway import config_option
from nexus.cli.output import Exit, counted, json_option, print_json, print_text, state


@click.command("doctor", short_help="Look for what is wrong, and name the mend.")
@config_option
@click.option(
    "--no-request",
    is_flag=True,
    help="Leave out the request through a gateway of the doctor's own.",
)
@json_option
def doctor(config: str | None, no_request: bool, as_json: bool) -> None:
    """Look for what is wrong: libraries, limits, configuration, keys, run directory, ports, processes, backends.

    Then it starts a gateway of its own beside, with a demo backend, and sees whether a request moves exactly the
    series that it should. It changes nothing of yours. It exits with 0 where nothing is wrong, with 1 where something
    is; a warning is not.
    """
    found = []
    for finding in examine(config, request=not no_request):
        found.append(finding)
        if not as_json:
            print_text(_shown(finding))
    faults = sum(finding.state == "fail" for finding in found)
    if as_json:
        print_json({"healthy": not faults, "findings": [asdict(finding) for finding in found]})
    else:
        print_text(f"\n{counted(faults, 'fault')}." if faults else "\nNothing is wrong.")
    sys.exit(Exit.NEGATIVE if faults else Exit.OK)


def examine(config: str | None, *, request: bool) -> Iterator[Finding]:
    """Every finding, as soon as it is there."""
    from nexus.cli.doctor import host, place, reach, trial
    from nexus.cli.gateway import find_gateway
    from nexus.fleet.run_directory import RunDirectory

    yield from host.libraries()
    yield from host.variables(os.environ)
    loaded, findings = place.configuration(config)
    yield from findings
    gateway = find_gateway(config, None)
    yield from host.descriptors(gateway.config)
    if loaded is not None:
        yield from place.secrets(loaded, os.environ)
    yield from place.run_directory(RunDirectory.of(gateway.config))
    if gateway.run_dir is not None:
        yield from place.problems(gateway.run_dir)
    yield from place.addresses(gateway)
    if loaded is not None:
        yield from reach.backends(loaded.config.backends, os.environ)
    if request:
        yield trial.request()


def _shown(finding: Finding) -> str:
    line = f"{state(finding.state, f'{finding.state:<4}')}  {finding.area:<18}  {finding.what}"
    return line + (f"\n{'':26}{finding.mend}" if finding.mend else "")
