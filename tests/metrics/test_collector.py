"""Reading for many at once."""

import threading

import pytest

from nexus.fleet.run_directory import RunDirectory, Started
from nexus.fleet.slot_lease import SlotLease
from nexus.metrics.collector import Collector
from nexus.metrics.recovery import recover_slot
from nexus.metrics.store import Store
from tests.support.polling import until


@pytest.fixture
def slot_lease(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.prepare()
    slot_lease = SlotLease.lease(run_dir.new_generation())
    recover_slot(slot_lease)
    yield slot_lease
    slot_lease.release()


def test_readings_that_overlap_share_the_next_one(slot_lease):
    """One is going on; whoever asks meanwhile waits for it, and all of them share one that
    starts after they asked."""
    store = Store(slot_lease)
    going, go_on = threading.Event(), threading.Event()
    readings = []

    def slow_snapshot() -> None:
        going.set()
        go_on.wait(10)

    figures = Collector(
        slot_lease,
        store.registry,
        started=Started.now(),
        snapshot=slow_snapshot,
        health_process_alive=lambda: True,
    )
    threads = [
        threading.Thread(target=lambda: readings.append(figures.collect())) for _ in range(6)
    ]
    threads[0].start()
    assert going.wait(10)
    for thread in threads[1:]:
        thread.start()
    until(lambda: figures.waiting == 5)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(readings) == 6
    assert len({id(reading) for reading in readings}) == 2
    assert figures.collect() not in readings
    store.close()
