"""`nexus doctor`: checks the installation and says how to fix what is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import click

from nexus.cli.doctor.findings import Finding
from nexus.cli.gateway import config_option
from nexus.cli.output import Exit, counted, json_option, print_json, print_text, state


@click.command("doctor", short_help="Look for what is wrong, and name the fix.")
@config_option
@click.option(
    "--no-request",
    is_flag=True,
    help="Send no request through a gateway of the doctor's own.",
)
@json_option
def doctor(config: str | None, no_request: bool, as_json: bool) -> None:
    """Check libraries, limits, configuration, keys, run directory, ports, processes and backends.

    It also starts a gateway of its own with a demo backend, and checks that a request moves exactly
    the series that it should. It changes nothing of yours. It exits with 0 if nothing is wrong,
    with 1 if something is. Warnings do not count.
    """
    findings = []
    for finding in examine(config, request=not no_request):
        findings.append(finding)
        if not as_json:
            print_text(_shown(finding))
    faults, warnings = (sum(one.state == kind for one in findings) for kind in ("fail", "warn"))
    if as_json:
        print_json({"healthy": not faults, "findings": [finding.as_json() for finding in findings]})
    else:
        counts = f"\n{counted(faults, 'fault')}, {counted(warnings, 'warning')}."
        print_text(counts if faults or warnings else "\nNothing is wrong.")
    sys.exit(Exit.NEGATIVE if faults else Exit.OK)


def examine(config: str | None, *, request: bool) -> Iterator[Finding]:
    """Yield every finding as soon as it is known."""
    from nexus.cli.doctor import backend_checks, gateway_checks, host_checks, request_check
    from nexus.cli.gateway import find_gateway
    from nexus.fleet.run_directory import RunDirectory

    yield from host_checks.libraries()
    yield from host_checks.variables(os.environ)
    loaded, settings = gateway_checks.configuration(config)
    yield from settings
    gateway = find_gateway(config, None)
    yield from host_checks.descriptors(gateway.config)
    yield from host_checks.uploads(gateway.config)
    if loaded is not None:
        yield from gateway_checks.secrets(loaded, os.environ)
        yield from gateway_checks.request_log(loaded.config.request_log)
    yield from gateway_checks.run_directory(RunDirectory.of(gateway.config))
    if gateway.run_dir is not None:
        yield from gateway_checks.problems(gateway.run_dir)
        if loaded is not None:
            yield from gateway_checks.prices(loaded, gateway.run_dir)
    yield from gateway_checks.addresses(gateway)
    yield from gateway_checks.limits(gateway)
    if loaded is not None:
        yield from backend_checks.backends(loaded.config.backends, os.environ)
    if request:
        yield request_check.request()


def _shown(finding: Finding) -> str:
    line = f"{state(finding.state, f'{finding.state:<4}')}  {finding.area:<18}  {finding.text}"
    return line + (f"\n{'':26}{finding.fix}" if finding.fix else "")
