"""Slots: leased lowest first, given back however the holder ends, and what a dead holder leaves
is booked once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from nexus.fleet.load_table import HEALTH, SLOTS, WORKER
from nexus.fleet.run_directory import RunDirectory
from nexus.fleet.slot_lease import NoFreeSlotError, SlotLease
from tests.support.polling import until
from tests.support.processes import clean_environ

HOLDER = """
import sys, time
from pathlib import Path
from nexus.fleet.run_directory import Generation
from nexus.fleet.slot_lease import SlotLease
lease = SlotLease.lease(Generation(Path(sys.argv[1])))
lease.claim_row()
for _ in range(3): lease.row.request_started(0)
lease.row.attempt_started(5)
print(lease.slot, flush=True)
time.sleep(60)
"""


@pytest.fixture
def generation(tmp_path):
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.prepare()
    return run_dir.new_generation()


def holder(generation) -> tuple[subprocess.Popen[str], int]:
    """Another process that leases a slot and has three requests in flight, one of them at a
    backend."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(generation.path)],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environ(),
    )
    assert process.stdout is not None
    slot = int(process.stdout.readline())
    process.stdout.close()
    return process, slot


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_lowest_free_slot(generation):
    first, second, third = (SlotLease.lease(generation) for _ in range(3))
    assert [first.slot, second.slot, third.slot] == [0, 1, 2]
    assert first.held_slots() == [0, 1, 2]
    second.release()
    assert first.held_slots() == [0, 2]
    assert SlotLease.lease(generation).slot == 1


@pytest.mark.parametrize("role", [WORKER, HEALTH])
def test_places_of_a_killed_worker_are_free_whoever_gets_its_slot(generation, role):
    """The health process may get it, which then holds the slot and is no worker."""
    digest = (1, 2)
    one, killed = (SlotLease.lease(generation) for _ in range(2))
    for lease in (one, killed):
        lease.claim_row()
    table, left = one.open_limit_table(), killed.open_limit_table()

    def in_progress() -> int:
        assert table.acquire()
        found = table.in_progress(digest)
        table.release()
        return found

    assert left.acquire()
    assert left.stage_progress(digest, 1, 1000, "a")
    left.commit()
    left.release()
    assert in_progress() == 1
    killed.release()
    heir = SlotLease.lease(generation, role=role)
    heir.claim_row()
    assert heir.slot == killed.slot
    assert in_progress() == 0
    for opened in (table, left):
        opened.close()


def test_held_slots_whatever_their_order(generation):
    """The kernel tells of one holder in a range, not of the lowest: one that came back late is
    not missed."""
    slot_leases = [SlotLease.lease(generation) for _ in range(5)]
    for slot in (0, 3, 1):
        slot_leases[slot].release()
        slot_leases[slot] = SlotLease.lease(generation)
    for slot_lease in slot_leases:
        assert slot_lease.held_slots() == [0, 1, 2, 3, 4]


def test_killed_holder_gives_its_slot_back(generation):
    process, slot = holder(generation)
    watcher = SlotLease.lease(generation)
    assert (slot, watcher.slot) == (0, 1)
    assert watcher.held_slots() == [0, 1]
    assert watcher.table.pending_in(5, watcher.held_slots()) == 1
    kill(process)
    assert watcher.held_slots() == [1]
    assert watcher.table.pending_in(5, watcher.held_slots()) == 0
    booked: list[int] = []
    assert watcher.reclaim_abandoned(booked.append) == [0]
    assert watcher.reclaim_abandoned(booked.append) == []
    assert booked == [0]
    assert watcher.table.pending(5) == 0
    assert watcher.table.in_flight() == 0


def test_next_lessee_sees_what_was_left(generation):
    process, _ = holder(generation)
    kill(process)
    slot_lease = SlotLease.lease(generation)
    assert slot_lease.slot == 0
    assert (slot_lease.row.in_flight, slot_lease.row.pid, slot_lease.table.pending(5)) == (
        3,
        process.pid,
        1,
    )
    slot_lease.claim_row()
    assert (slot_lease.row.in_flight, slot_lease.row.pid, slot_lease.table.pending(5)) == (
        0,
        os.getpid(),
        0,
    )
    assert slot_lease.row.worker_starts == 2


def test_sweep_leaves_the_living_alone(generation):
    process, _ = holder(generation)
    watcher = SlotLease.lease(generation)
    assert watcher.reclaim_abandoned(print) == []
    assert watcher.table.in_flight() == 3
    kill(process)
    until(lambda: watcher.reclaim_abandoned(print) == [0])


def test_asking_takes_nothing(generation):
    """A reader that looks all the time never makes a new process miss the lowest slot."""
    watcher = SlotLease.lease(generation)
    for _ in range(200):
        assert watcher.held_slots() == [0]
        new = SlotLease.lease(generation)
        assert new.slot == 1
        new.release()


def test_handing_over(generation):
    taken = SlotLease.lease(generation)
    environ: dict[str, str] = {}
    taken.export_to(environ)
    slot_lease = SlotLease.from_environ(environ)
    assert slot_lease is not None
    assert slot_lease.slot == taken.slot
    assert environ == {}
    assert SlotLease.from_environ(environ) is None


def test_no_slot_is_left(generation):
    slot_leases = [SlotLease.lease(generation) for _ in range(SLOTS)]
    with pytest.raises(NoFreeSlotError, match="all 256 slots are taken"):
        SlotLease.lease(generation)
    for slot_lease in slot_leases:
        slot_lease.release()


def test_private():
    slot_lease = SlotLease.private()
    slot_lease.row.request_started(0)
    assert (
        slot_lease.held_slots(),
        slot_lease.metrics,
        slot_lease.reclaim_abandoned(print),
        slot_lease.table.in_flight(),
    ) == ([0], None, [], 1)


def test_a_table_that_is_truncated_while_a_worker_starts_shows_its_start(generation):
    worker = SlotLease.lease(generation, nth=7)
    health = SlotLease.lease(generation, role=HEALTH)
    health.claim_row()
    os.truncate(generation.load, 0)
    health.restore_row()
    worker.claim_row()
    worker.restore_row()
    assert health.table.worker_starts() == 7
    for lease in (worker, health):
        lease.release()


def test_a_restored_row_is_not_silent(generation):
    """The supervisor would kill the health process, whose next heartbeat is yet to come."""
    lease = SlotLease.lease(generation, role=HEALTH)
    lease.claim_row()
    os.truncate(generation.load, 0)
    before = time.monotonic_ns()
    lease.restore_row()
    assert lease.table.last_heartbeat(HEALTH) >= before
    lease.release()
