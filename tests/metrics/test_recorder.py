"""Counting, over several processes' files in one directory: each slot continues what it finds,
and reading sums them."""

import os
import time

import pytest

from nexus.errors import FAULTS
from nexus.fleet.outcome import Outcome
from nexus.fleet.run_directory import RunDirectory, Started
from nexus.fleet.slot_lease import SlotLease
from nexus.metrics import families
from nexus.metrics.collector import Collector
from nexus.metrics.processes import memory_and_cpu
from nexus.metrics.recorder import Recorder
from nexus.metrics.recovery import record_lost, recover_abandoned, recover_slot
from nexus.metrics.store import Store
from tests.support.metrics import Scrape


@pytest.fixture
def generation(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.prepare()
    return run_dir.new_generation()


class Process:
    """What a process has, without the process."""

    def __init__(self, slot_lease: SlotLease) -> None:
        recover_slot(slot_lease)
        self.slot_lease = slot_lease
        self.store = Store(slot_lease)
        self.recorder = Recorder(self.store, slot_lease)
        self.figures = Collector(
            slot_lease,
            self.store.registry,
            started=Started.now(workers=1),
            snapshot=lambda: None,
            health_process_alive=lambda: False,
        )

    def scrape(self) -> Scrape:
        return Scrape(self.figures.collect().exposition().decode())

    def end(self) -> None:
        self.recorder.close()
        self.store.close()
        self.slot_lease.release()


@pytest.fixture
def process_at(generation):
    """Makes processes, and ends those that are still there."""
    made = []

    def make(slot_lease: SlotLease) -> Process:
        made.append(Process(slot_lease))
        return made[-1]

    yield make
    for process in made:
        process.end()


def finished(**more) -> Outcome:
    return Outcome(
        **{"model_label": "m", "backend_label": "b", "status": 200, "duration_s": 0.3, **more}
    )


def test_one_request(generation, process_at):
    process = process_at(SlotLease.lease(generation))
    process.recorder.request_started("chat_completions")
    assert process.slot_lease.row.in_flight == 1
    process.recorder.request_finished(
        finished(prompt_tokens=7, completion_tokens=120, fallback_from="old")
    )
    assert process.slot_lease.row.in_flight == 0
    assert process.slot_lease.row.sequence % 2 == 0
    s = process.scrape()
    assert s.value("nexus_requests_total", model="m", backend="b", status="200") == 1
    assert s.value("nexus_request_duration_seconds_bucket", model="m", backend="b", le="0.25") == 0
    assert s.value("nexus_request_duration_seconds_bucket", model="m", backend="b", le="0.5") == 1
    assert s.value("nexus_tokens_total_sum", model="m", backend="b", type="completion") == 120
    assert (
        s.value("nexus_tokens_total_bucket", model="m", backend="b", type="prompt", le="10.0") == 1
    )
    assert s.value("nexus_fallbacks_total", from_model="old", to_model="m") == 1
    assert s.total("nexus_errors_total") == 0


def test_processes_are_summed_and_the_next_lessee_goes_on(generation, process_at):
    first, second = process_at(SlotLease.lease(generation)), process_at(SlotLease.lease(generation))
    for process, times in ((first, 3), (second, 4)):
        for _ in range(times):
            process.recorder.request_finished(finished())
    assert second.scrape().total("nexus_requests_total") == 7
    first.end()
    assert second.scrape().total("nexus_requests_total") == 7
    third = process_at(SlotLease.lease(generation))
    assert third.slot_lease.slot == 0
    third.recorder.request_finished(finished())
    assert second.scrape().total("nexus_requests_total") == 8
    assert len(list(generation.metrics.glob("*.db"))) == 4


def test_only_what_was_sent_uses_the_retry_budget(generation, process_at):
    process = process_at(SlotLease.lease(generation))
    for sent in (True, False):
        process.recorder.retried("b", "invalid_request", sent=sent)
    assert process.scrape().total("nexus_retries_total") == 2
    retries = process.slot_lease.table.requests_and_retries(time.monotonic_ns())[1]
    assert retries == 1


def test_buckets_are_the_contracts():
    assert families.DURATION.buckets == (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
    assert families.TOKENS_USED.buckets == (
        10,
        50,
        100,
        500,
        1000,
        2000,
        4000,
        8000,
        16000,
        32000,
        64000,
        128000,
    )
    assert set(families.DURATION.buckets) <= set(families.PROBE_LATENCY.buckets)


def test_damaged_file_does_not_fail_the_scrape(generation, process_at):
    process = process_at(SlotLease.lease(generation))
    process.recorder.request_finished(finished())
    (generation.metrics / "counter_7.db").write_bytes(b"")
    (generation.metrics / "counter_8.db").write_bytes(b"\x40\x00\x00\x00garbage" + b"\xff" * 80)
    (generation.metrics / "counter_somebody-else.db").write_bytes(
        (generation.metrics / "counter_0.db").read_bytes()
    )
    process.scrape()
    s = process.scrape()
    assert s.total("nexus_requests_total") == 2
    assert s.value("nexus_metrics_damaged_files_total") == 2


def test_alone_it_counts_in_memory(process_at):
    process = process_at(SlotLease.private())
    process.recorder.request_finished(finished(fault=FAULTS["first_byte_timeout"], status=504))
    s = process.scrape()
    assert s.total("nexus_requests_total", status="504") == 1
    assert s.value("nexus_errors_total", error_type="timeout", model="m") == 1
    assert s.value("nexus_backends_total") == 0
    assert s.has("nexus_backends_total")


def test_balance_of_a_process_that_was_killed(generation, process_at):
    """What it had in flight is lost once, whoever books it; then everything adds up again."""
    killed, other = process_at(SlotLease.lease(generation)), process_at(SlotLease.lease(generation))
    for _ in range(5):
        killed.recorder.request_started("embeddings")
    killed.recorder.request_finished(finished())
    killed.recorder.attempt_started(3, 0.0)
    assert other.scrape().value("nexus_accounting_imbalance") == 0
    assert other.scrape().value("nexus_workers") == 2
    killed.slot_lease.release()  # as the kernel does
    assert other.scrape().value("nexus_workers") == 1
    recover_abandoned(other.slot_lease)
    recover_abandoned(other.slot_lease)
    s = other.scrape()
    assert s.value("nexus_requests_lost_total") == 4
    assert s.value("nexus_accounting_imbalance") == 0
    assert other.slot_lease.table.pending(3) == 0
    again = process_at(SlotLease.lease(generation))
    assert again.slot_lease.slot == killed.slot_lease.slot
    assert other.scrape().value("nexus_requests_lost_total") == 4
    assert other.scrape().value("nexus_worker_restarts_total") == 2


@pytest.mark.parametrize("moment", ["before the row", "after the row", "within the recording"])
def test_killed_at_any_moment_of_the_accounts(generation, process_at, moment):
    killed = process_at(SlotLease.lease(generation))
    killed.recorder.request_started("embeddings")
    if moment == "before the row":
        killed.slot_lease.row.request_finished()
    if moment == "within the recording":
        killed.slot_lease.row.write_begin()
        killed.store.child(families.REQUESTS, ("m", "b", "200")).inc()
    killed.slot_lease.release()
    after = process_at(SlotLease.lease(generation))
    s = after.scrape()
    assert s.value("nexus_requests_lost_total") == (0 if moment == "within the recording" else 1)
    assert s.value("nexus_accounting_imbalance") == 0
    assert after.slot_lease.row.sequence % 2 == 0


def test_imbalance_can_be_wrong(generation, process_at):
    """It comes from independent counts: a request that is forgotten shows."""
    process = process_at(SlotLease.lease(generation))
    process.recorder.request_started("embeddings")
    process.slot_lease.row.request_finished()
    assert process.scrape().value("nexus_accounting_imbalance") == 1


def test_booking_finds_nothing_in_a_directory_without_files(tmp_path):
    assert record_lost(tmp_path, 0) == 0


def test_processes_show_their_memory(generation, process_at):
    process = process_at(SlotLease.lease(generation))
    labels = {"slot": "0", "role": "worker", "pid": str(os.getpid())}
    s = process.scrape()
    assert s.value("nexus_process_resident_memory_bytes", **labels) > 1 << 20
    assert s.value("nexus_process_cpu_seconds_total", **labels) > 0


def test_no_process_shows_less_processor_time_than_another_has_shown(generation, process_at):
    one, other = (process_at(SlotLease.lease(generation)) for _ in range(2))
    started_s = other.scrape().total("nexus_process_cpu_seconds_total", slot="0")
    while (used := memory_and_cpu(os.getpid())) and used[1] <= started_s:
        pass  # this takes processor time
    shown_s = one.scrape().total("nexus_process_cpu_seconds_total", slot="0")
    assert other.scrape().total("nexus_process_cpu_seconds_total", slot="0") >= shown_s > started_s


def test_series_that_find_no_space_are_counted_in_the_process(generation, process_at, monkeypatch):
    """The file cannot grow: said, counted, and the request goes on."""
    process = process_at(SlotLease.lease(generation))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for number in range(400):
        process.recorder.request_finished(finished(model_label=f"model-{number}"))
    monkeypatch.undo()
    s = process.scrape()
    errors = s.value("nexus_metrics_write_errors_total")
    assert errors > 0
    assert 0 < s.total("nexus_requests_total") <= 400
