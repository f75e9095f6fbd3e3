"""Costs by backend, by key, and in usage are the same, whenever a process is killed."""

import pytest

from nexus.fleet.outcome import Charge, Outcome
from nexus.fleet.run_directory import RunDirectory
from nexus.fleet.slot_lease import SlotLease
from nexus.metrics import cost_families
from nexus.metrics.recovery import complete_costs, recover_abandoned
from nexus.metrics.request_series import RarerSeries
from tests.metrics.test_recorder import Process

PARTS = (("input", 3), ("output", 5))
STEPS = 9
"""What a request with `PARTS` changes: five of usage, two by backend, one by key, one retried."""


@pytest.fixture
def generation(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.prepare()
    return run_dir.new_generation()


def outcome(key: str | None) -> Outcome:
    return Outcome(
        model="m", model_label="m", backend="b", backend_label="b", status=200, duration_s=0.3,
        endpoint="chat_completions", usage="reported", prompt_tokens=7, completion_tokens=2,
        cached_tokens=1, key=key, key_label=key, team=key and "t", team_label=key and "t",
        charge=Charge(PARTS, retried=(("b", "m", 4),)),
    )  # fmt: skip


def nano(series: dict) -> dict:
    return {key: round(value * 1e9) for key, value in series.items()}


def test_costs_are_counted_by_backend_and_by_key_with_or_without_one(generation):
    process, other = (Process(SlotLease.lease(generation)) for _ in range(2))
    for key in (None, "k", "k"):
        process.recorder.request_started("chat_completions")
        process.recorder.request_finished(outcome(key))
    found = other.scrape()
    assert nano(found.series("nexus_cost_usd_total", "type", "outcome")) == {
        ("input", "delivered"): 9,
        ("output", "delivered"): 15,
        ("time", "retried"): 12,
    }
    by_key = nano(found.series("nexus_key_cost_usd_total", "key", "team"))
    assert by_key == {("none", "none"): 8, ("k", "t"): 16}
    assert found.value("nexus_cost_imbalance_usd") == 0
    process.end()
    other.end()


@pytest.mark.parametrize("made", range(STEPS + 1))
def test_what_a_killed_process_left_is_completed(generation, made):
    """Every change of a request is tried as the last one."""
    process, other = (Process(SlotLease.lease(generation)) for _ in range(2))
    process.recorder.request_finished(outcome("k"))
    charges = RarerSeries(process.recorder.child, process.recorder._usage).costs(
        outcome("k"), Charge(PARTS, retried=(("b", "m", 4),))
    )
    assert len(charges) == STEPS
    for move, amount in charges[:made]:
        move(amount)
    slot = process.slot_lease.slot
    process.end()
    recover_abandoned(other.slot_lease)
    found = other.scrape()
    usage = other.figures.usage_reader(generation.usage).read()
    used = sum(amounts[-1] for amounts in usage.values())
    assert used in (8, 16)
    costs = nano(found.series("nexus_cost_usd_total", "outcome", "type", "backend"))
    assert sum(v for (outcome, *_), v in costs.items() if outcome == "delivered") == used
    by_key = nano(found.series("nexus_key_cost_usd_total", "key"))
    assert sum(by_key.values()) == used
    assert found.value("nexus_cost_imbalance_usd") == 0
    assert complete_costs(generation.metrics, generation.usage, slot) == 0
    other.end()


def test_usage_can_be_read_before_metrics_ever_were(generation):
    """The ledger may be written before the first scrape."""
    process, other = (Process(SlotLease.lease(generation)) for _ in range(2))
    process.recorder.request_finished(outcome("k"))
    [(key, amounts)] = other.figures.usage_reader(generation.usage).read().items()
    assert (key.key, amounts) == ("k", (1, 7, 1, 2, 8))
    process.end()
    other.end()


def test_a_cost_that_is_counted_by_backend_alone_shows(generation):
    process = Process(SlotLease.lease(generation))
    process.recorder.child(cost_families.COST, "b", "m", "input", "delivered").inc(2)
    assert process.scrape().value("nexus_cost_imbalance_usd") == 2e-9
    process.end()


def test_without_files_there_is_nothing_to_complete(tmp_path):
    assert complete_costs(tmp_path, tmp_path / "usage", 0) == 0
