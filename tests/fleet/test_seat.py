"""Slots: leased lowest first, given back however the holder ends, and what a dead holder leaves is booked once."""

import os
import signal
import subprocess
import sys

import pytest

from nexus.fleet.load import SLOTS
from nexus.fleet.rundir import RunDirectory
from nexus.fleet.seat import NoSeatError, Seat
from tests.support.polling import until
from tests.support.processes import clean_environ

HOLDER = """
import sys, time
from pathlib import Path
from nexus.fleet.rundir import Generation
from nexus.fleet.seat import Seat
seat = Seat.lease(Generation(Path(sys.argv[1])))
seat.take_over()
for _ in range(3): seat.row.enter(0)
seat.row.begin(5)
print(seat.slot, flush=True)
time.sleep(60)
"""


@pytest.fixture
def generation(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.prepare()
    return run_dir.new_generation()


def holder(generation) -> tuple[subprocess.Popen[str], int]:
    """Another process that leases a slot and has three requests in flight, one of them at a backend."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(generation.path)], stdout=subprocess.PIPE, text=True, env=clean_environ()
    )
    assert process.stdout is not None
    slot = int(process.stdout.readline())
    process.stdout.close()
    return process, slot


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_lowest_free_slot(generation):
    first, second, third = (Seat.lease(generation) for _ in range(3))
    assert [first.slot, second.slot, third.slot] == [0, 1, 2]
    assert first.held_slots() == [0, 1, 2]
    second.leave()
    assert first.held_slots() == [0, 2]
    assert Seat.lease(generation).slot == 1


def test_held_slots_whatever_their_order(generation):
    """The kernel tells of one holder in a range, not of the lowest: one that came back late is not missed."""
    seats = [Seat.lease(generation) for _ in range(5)]
    for slot in (0, 3, 1):
        seats[slot].leave()
        seats[slot] = Seat.lease(generation)
    for seat in seats:
        assert seat.held_slots() == [0, 1, 2, 3, 4]


def test_killed_holder_gives_its_slot_back(generation):
    process, slot = holder(generation)
    watcher = Seat.lease(generation)
    assert (slot, watcher.slot) == (0, 1)
    assert watcher.held_slots() == [0, 1]
    assert watcher.table.pending_in(5, watcher.held_slots()) == 1
    kill(process)
    assert watcher.held_slots() == [1]
    assert watcher.table.pending_in(5, watcher.held_slots()) == 0
    booked: list[int] = []
    assert watcher.sweep(booked.append) == [0]
    assert watcher.sweep(booked.append) == []
    assert booked == [0]
    assert watcher.table.pending(5) == 0
    assert watcher.table.in_flight() == 0


def test_next_lessee_finds_what_was_left(generation):
    process, _ = holder(generation)
    kill(process)
    seat = Seat.lease(generation)
    assert seat.slot == 0
    assert (seat.row.in_flight, seat.row.pid, seat.table.pending(5)) == (3, process.pid, 1)
    seat.take_over()
    assert (seat.row.in_flight, seat.row.pid, seat.table.pending(5)) == (0, os.getpid(), 0)
    assert seat.row.worker_starts == 2


def test_sweep_leaves_the_living_alone(generation):
    process, _ = holder(generation)
    watcher = Seat.lease(generation)
    assert watcher.sweep(print) == []
    assert watcher.table.in_flight() == 3
    kill(process)
    until(lambda: watcher.sweep(print) == [0])


def test_asking_takes_nothing(generation):
    """A reader that looks all the time never makes a new process miss the lowest slot."""
    watcher = Seat.lease(generation)
    for _ in range(200):
        assert watcher.held_slots() == [0]
        new = Seat.lease(generation)
        assert new.slot == 1
        new.leave()


def test_handing_over(generation):
    taken = Seat.lease(generation)
    environ: dict[str, str] = {}
    taken.hand_over(environ)
    seat = Seat.handed_over(environ)
    assert seat is not None
    assert seat.slot == taken.slot
    assert environ == {}
    assert Seat.handed_over(environ) is None


def test_no_slot_is_left(generation):
    seats = [Seat.lease(generation) for _ in range(SLOTS)]
    with pytest.raises(NoSeatError, match="all 256 slots are taken"):
        Seat.lease(generation)
    for seat in seats:
        seat.leave()


def test_alone():
    seat = Seat.alone()
    seat.row.enter(0)
    assert (seat.held_slots(), seat.metrics, seat.sweep(print), seat.table.in_flight()) == ([0], None, [], 1)
