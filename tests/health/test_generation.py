"""The health process follows the gateway's starts, and leaves no generation behind."""

import gc

import pytest

from nexus.config import Config
from nexus.config.budget_records import Budget
from nexus.fleet.records import Snapshot
from nexus.fleet.run_directory import RunDirectory
from nexus.fleet.slot_lease import SlotLease
from nexus.health import generation as generation_module
from nexus.health.generation import GenerationFollower
from tests.support.descriptors import open_descriptors


@pytest.fixture
def run_dir(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.prepare()
    return run_dir


def names(run_dir):
    return {generation.name for generation in run_dir.generations()}


def test_a_generation_that_was_left_is_deleted_once_nobody_holds_it(run_dir, monkeypatch):
    """As at each start at which the health process is faster than the gateway."""
    follower = GenerationFollower(run_dir, lambda: None)
    [first] = run_dir.generations()
    worker = SlotLease.lease(first)
    second = run_dir.new_generation()
    assert follower.follow()
    assert follower.path == second.path
    assert not follower.follow()
    assert names(run_dir) == {first.name, second.name}, "its last changes can be read"
    worker.release()
    monkeypatch.setattr(generation_module, "_LEAVE_AFTER_S", 0.0)
    third = run_dir.new_generation()
    assert follower.follow()
    assert names(run_dir) == {first.name, second.name, third.name}
    assert not follower.follow()
    assert names(run_dir) == {third.name}
    follower.close()


def test_a_generation_that_is_held_stays(run_dir, monkeypatch):
    monkeypatch.setattr(generation_module, "_LEAVE_AFTER_S", 0.0)
    follower = GenerationFollower(run_dir, lambda: None)
    [first] = run_dir.generations()
    worker = SlotLease.lease(first)
    second = run_dir.new_generation()
    assert follower.follow()
    assert not follower.follow()
    assert names(run_dir) == {first.name, second.name}
    worker.release()
    follower.close()


def test_a_collection_that_runs_meanwhile_can_end(run_dir):
    """It lets other greenlets run, of which one may follow."""
    follower = GenerationFollower(run_dir, lambda: None)
    before = follower.context
    run_dir.new_generation()
    assert follower.follow()
    before.collector.collect()
    before.recorder.ledger_failed()
    run_dir.new_generation()
    assert follower.follow()
    follower.close()


def test_files_of_generations_that_were_left_are_closed(run_dir):
    config = Config(budgets=[Budget(name="a", usd="1")])
    snapshot = Snapshot(revision=1, published_at=0, config=config)
    follower = GenerationFollower(run_dir, lambda: snapshot)
    counts = []
    for _ in range(4):
        follower.context.recorder.ledger_failed()
        follower.context.collector.collect()
        run_dir.new_generation()
        assert follower.follow()
        gc.collect()
        counts.append(open_descriptors())
    follower.close()
    assert counts[1:] == [counts[1]] * 3
