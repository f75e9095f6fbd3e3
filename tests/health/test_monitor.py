"""The fleet that is probed and published, and changes of it."""

import pytest

from nexus.config import BackendConfig, Config
from nexus.config.overlay import Overlay
from nexus.fleet.run_directory import RunDirectory
from nexus.health.monitor import FleetMonitor
from nexus.health.prober import ProbeOutcome
from nexus.health.publisher import Publisher
from nexus.runtime.sd_notify import Notifier

OVERLAY = Overlay(file=Config(backends=[BackendConfig(name="a", url="http://a")]))


@pytest.fixture
def publisher(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.prepare()
    publisher = Publisher(run_dir, Notifier(None))
    yield publisher
    publisher.generation.context.close()


@pytest.fixture
def monitor(publisher):
    monitor = FleetMonitor(publisher, {}, OVERLAY)
    assert monitor.adopt(monitor.fleet)
    return monitor


def test_a_new_fleet_has_results_that_are_not_published_yet(monitor):
    monitor.fleet.apply_result("a", ProbeOutcome(None, None, "refused"), now=2.0)
    backend = monitor.new_fleet(OVERLAY).backends["a"]
    assert (backend.status, backend.last_error, backend.since) == ("unhealthy", "refused", 2.0)
    assert backend.column == monitor.fleet.backends["a"].column
