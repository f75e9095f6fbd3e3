"""The levels of limits in a scrape."""

from nexus.config import Config
from nexus.config.budget_records import Budget
from nexus.fleet.records import Snapshot
from nexus.fleet.run_directory import RunDirectory
from nexus.fleet.slot_lease import SlotLease
from nexus.metrics.limit_gauge import LimitGauge
from tests.support.descriptors import open_descriptors


def test_the_table_is_not_opened_for_budgets_alone(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.prepare()
    lease = SlotLease.lease(run_dir.new_generation())
    lease.open_limit_table().close()
    config = Config(budgets=[Budget(name="a", usd="1")])
    snapshot = Snapshot(revision=1, published_at=0, config=config)
    gauge, before = LimitGauge(lease), open_descriptors()
    for _ in range(5):
        assert gauge.samples(snapshot, 0) == []
    assert open_descriptors() == before
    lease.release()
