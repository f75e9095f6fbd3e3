"""A real Prometheus with the shipped configuration and rules, a real gateway, an outage: the
alerts that should fire do, and no others."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml
from tests.support.prometheus import Prometheus

pytestmark = pytest.mark.e2e

FASTER = 60
"""A minute of the rules is a second here, and a scrape comes every quarter of one."""

SOONER_OR_LATER = {"NexusAvailabilityBurnsSlowly", "NexusBackendFails"}
"""What an outage may bring with it in time: these depend on how its failures lie in their
windows."""


@pytest.fixture(scope="module")
def watched(module_dir: Path) -> Iterator[tuple[Gateway, dict[str, Demo], Prometheus, Load]]:
    with (
        Demo(module_dir, name="rack-1", models=["shared"], pace=0) as first,
        Demo(module_dir, name="rack-2", models=["shared", "solo"], pace=0) as second,
        Gateway(module_dir, backend_toml(first, second)) as gateway,
        Prometheus(
            module_dir / "prometheus", f"127.0.0.1:{gateway.operations_port}", faster=FASTER
        ) as prometheus,
    ):
        load = Load(gateway.port, rate=20, clients=4)
        try:
            yield gateway, {"rack-1": first, "rack-2": second}, prometheus, load
        finally:
            load.stop()


def fires(prometheus: Prometheus, names: set[str], *, within_s: float = 30) -> None:
    """These come to fire, and when they do no other does; nor is another on its way, but those
    of every outage."""

    def all_of_them() -> bool:
        assert names <= prometheus.firing()
        return True

    until(all_of_them, within_s=within_s, every_s=0.2)
    assert prometheus.firing() - SOONER_OR_LATER == names
    assert set(prometheus.alerts()) - SOONER_OR_LATER == names


def labels(prometheus: Prometheus, alert: str, label: str) -> set[str]:
    return {
        each["labels"][label] for each in prometheus.alerts()[alert] if each["state"] == "firing"
    }


def test_outage(watched):
    gateway, demos, prometheus, load = watched

    until(lambda: prometheus.query("job:nexus_requests_answerable:rate5m") or None, within_s=30)
    until(lambda: prometheus.alerts() == {}, within_s=30)
    assert prometheus.query("job:nexus_requests_failed:ratio_rate5m") == {(): 0}
    assert prometheus.query("nexus_model_backends") == {("shared",): 2, ("solo",): 1}

    # One of two: its own alert, no page; retries keep it from the clients.
    demos["rack-1"].stop(number=signal.SIGKILL)
    fires(prometheus, {"NexusBackendDown"})
    assert labels(prometheus, "NexusBackendDown", "backend") == {"rack_1"}
    assert {status for _, status, _ in load.results} == {200}

    # All: what clients feel, and why.
    demos["rack-2"].stop(number=signal.SIGKILL)
    everything = {
        "NexusAvailabilityBurnsFast",
        "NexusBackendDown",
        "NexusNoHealthyBackend",
    }
    fires(prometheus, everything)
    until(lambda: labels(prometheus, "NexusBackendDown", "backend") == {"rack_1", "rack_2"})
    assert {status for _, status, _ in load.results} <= {200, 502, 503}

    # A reload that is refused.
    gateway.write("\n[routing]\nstrategy = 'none such'\n")
    refused = subprocess.run(
        [
            sys.executable,
            "-m",
            "nexus",
            "reload",
            "-c",
            str(gateway.file),
            "--run-dir",
            str(gateway.run_dir),
        ],
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2, refused.stderr
    fires(prometheus, everything | {"NexusReloadFailed"})

    # What is reported can be read, and every rule could be evaluated on these metrics.
    for alert in (alert for alerts in prometheus.alerts().values() for alert in alerts):
        for text in alert["annotations"].values():
            assert "<" not in text, text
            assert "{" not in text, text
        assert alert["annotations"]["runbook_url"].startswith(
            "https://nexus.example/docs/runbooks/"
        )
    assert {
        (rule["name"], rule["health"], rule.get("lastError")) for rule in prometheus.rules()
    } == {(rule["name"], "ok", None) for rule in prometheus.rules()}

    # The host goes: its other alerts end with its metrics, but that of the windows, which have the
    # outage in them.
    load.stop()
    gateway.stop()
    remembered = SOONER_OR_LATER | {"NexusAvailabilityBurnsFast"}
    until(lambda: prometheus.firing() - remembered == {"NexusTargetDown"}, within_s=30, every_s=0.2)
