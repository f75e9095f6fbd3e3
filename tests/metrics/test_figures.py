"""Reading for many at once."""

import threading

import pytest

from nexus.fleet.rundir import RunDirectory, Started
from nexus.fleet.seat import Seat
from nexus.metrics.figures import Figures
from nexus.metrics.settlement import settle
from nexus.metrics.store import Store
from tests.support.polling import until


@pytest.fixture
def seat(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.prepare()
    seat = Seat.lease(run_dir.new_generation())
    settle(seat)
    yield seat
    seat.leave()


def test_readings_that_overlap_share_the_next_one(seat):
    """One is going on; whoever asks meanwhile waits for it, and all of them share one that begins after they asked."""
    store = Store(seat)
    going, go_on = threading.Event(), threading.Event()
    readings = []

    def slow_snapshot() -> None:
        going.set()
        go_on.wait(10)

    figures = Figures(
        seat, store.registry, started=Started.now(), snapshot=slow_snapshot, health_process_alive=lambda: True
    )
    threads = [threading.Thread(target=lambda: readings.append(figures.read())) for _ in range(6)]
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
    assert figures.read() not in readings
    store.close()
