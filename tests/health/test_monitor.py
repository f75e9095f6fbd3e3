"""The fleet that is probed and published, and changes of it."""

import time

import pytest

from nexus.config import BackendConfig, Config
from nexus.config.overlay import Overlay
from nexus.fleet import locks
from nexus.fleet.locks import LockFile
from nexus.fleet.run_directory import RunDirectory
from nexus.fleet.state_directory import StateDirectory
from nexus.health.change_files import ChangeFiles
from nexus.health.key_admin import HealthKeyAdmin
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
    publisher.generation.close()


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


def test_a_key_keeps_what_was_changed_while_it_waited_for_another_gateway(
    tmp_path, publisher, monitor, monkeypatch
):
    state_dir = StateDirectory(tmp_path / "state")
    state_dir.path.mkdir(mode=0o700)
    changes = ChangeFiles(None, {}, session_dir=publisher.generation.path, state_dir=state_dir)
    other = LockFile(state_dir.path / "lock")
    assert other.acquire(0)

    def add_a_backend_meanwhile(_: float) -> None:
        added = BackendConfig(name="b", url="http://b")
        monitor.adopt(monitor.new_fleet(monitor.fleet.overlay.add(added, save=False)))
        other.close()

    monkeypatch.setattr(locks.time, "sleep", add_a_backend_meanwhile)
    made = HealthKeyAdmin(monitor, changes).add_key({"name": "k"})
    assert list(monitor.fleet.backends) == ["a", "b"]
    assert [key.id for key in monitor.fleet.config.keys] == [made.id]
    state_dir.close()


def test_results_that_arrive_together_are_published_together(publisher):
    """Each snapshot takes a time that grows with the fleet."""
    backends = [BackendConfig(name=f"b{n}", url="http://127.0.0.1:9") for n in range(20)]
    monitor = FleetMonitor(publisher, {}, Overlay(file=Config(backends=backends)))
    assert monitor.adopt(monitor.fleet)
    first = publisher.snapshot.revision
    monitor.rounds.round()
    assert {backend.status for backend in publisher.snapshot.backends} == {"unhealthy"}
    assert publisher.snapshot.revision <= first + 2, "one for the results, one for the round"


def test_the_age_of_the_fleet_ignores_jumps_of_the_wall_clock(publisher, monkeypatch):
    assert publisher.fleet_age_s() is None
    publisher.record_probe_round()
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert publisher.fleet_age_s() < 60
