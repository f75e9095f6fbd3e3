"""The shared table of circuits, over real processes."""

import subprocess
import sys
import time

import pytest

from nexus.fleet.circuits import Circuit, CircuitTable
from nexus.fleet.load_table import COLUMNS
from nexus.fleet.locks import LockFile

SECOND = 1_000_000_000
OPEN = Circuit(open_until=9 * SECOND, consecutive_opens=1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "circuits"


def elsewhere(path, code: str) -> str:
    """What the code prints in another process, which has the table as `t`."""
    script = (
        f"from pathlib import Path; from nexus.fleet.circuits import Circuit, CircuitTable; t = "
        f"CircuitTable(Path({str(path)!r}))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script + code], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    ("circuit", "now_s", "state"),
    [
        (Circuit(), 5, "closed"),
        (Circuit(open_until=7 * SECOND, consecutive_opens=1), 5, "open"),
        (Circuit(open_until=7 * SECOND, consecutive_opens=1), 7, "half_open"),
        (Circuit(recovered=3 * SECOND, consecutive_opens=1), 5, "closed"),
    ],
)
def test_states(circuit, now_s, state):
    assert circuit.state(now_s * SECOND) == state


def test_processes_share_what_they_record(path):
    table = CircuitTable(path)
    assert not table.dirty[3]
    assert (
        elsewhere(path, f"print(t.store(3, Circuit(), {OPEN}), t.store(3, Circuit(), {OPEN}))")
        == "True False"
    )
    assert table.dirty[3]
    assert table.read(3) == OPEN
    assert not table.store(3, Circuit(), OPEN), "it is open already"
    assert table.state(3, 8 * SECOND) == "open"
    assert table.state(2, 8 * SECOND) == "closed"


def test_one_half_open_probe_over_all_processes(path):
    table = CircuitTable(path)
    table.store(3, Circuit(), Circuit(open_until=10 * SECOND, consecutive_opens=1))
    lease = "print(t.acquire_probe_lease(3, {} * 10**9, {} * 10**9))"
    assert elsewhere(path, lease.format(9, 14)) == "False", "it is not half open yet"
    assert elsewhere(path, lease.format(10, 15)) == "True"
    assert not table.acquire_probe_lease(3, 14 * SECOND, 19 * SECOND), "another process has it"
    assert table.acquire_probe_lease(3, 15 * SECOND, 20 * SECOND), (
        "the lease has expired, as it does if its holder dies"
    )
    table.release_probe_lease(3, 15 * SECOND)
    assert elsewhere(path, lease.format(16, 21)) == "False", (
        "a late release leaves another request's lease"
    )
    table.release_probe_lease(3, 20 * SECOND)
    assert elsewhere(path, lease.format(16, 21)) == "True"


def test_busy_models(path):
    table = CircuitTable(path)
    elsewhere(
        path, "t.record_model_busy(1, 'm', 8 * 10**9); t.record_model_busy(1, 'm', 6 * 10**9)"
    )
    assert table.dirty[1]
    assert table.read(1) == Circuit(models_until=8 * SECOND)
    assert [
        table.model_busy_until(1, "m"),
        table.model_busy_until(1, "n"),
        table.model_busy_until(2, "m"),
    ] == [
        8 * SECOND,
        0,
        0,
    ]
    table.clear_if_expired(1, 7 * SECOND)
    assert table.dirty[1]
    table.clear_if_expired(1, 9 * SECOND)
    assert not table.dirty[1]


def test_models_that_share_a_pair_of_cells_are_distinguished():
    table = CircuitTable(None)
    for n in range(20_000):
        table.record_model_busy(1, f"m{n}", SECOND)
    known = [n for n in range(20_000) if table.model_busy_until(1, f"m{n}")]
    assert 3000 < len(known) <= 4096, "the later one holds, and none is taken for another"


def test_probe_request(path):
    table = CircuitTable(path)
    elsewhere(path, "t.request_health_probe(3)")
    assert [table.pop_probe_request(2), table.pop_probe_request(3), table.pop_probe_request(3)] == [
        False,
        True,
        False,
    ]


def test_what_has_expired_is_cleared(path):
    table = CircuitTable(path)
    table.record_failure(1, 5 * SECOND)
    table.record_busy(1, 8 * SECOND)
    table.record_busy(1, 6 * SECOND)
    assert table.read(1).busy_until == 8 * SECOND, "the later one holds"
    table.clear_if_expired(1, 7 * SECOND)
    assert table.dirty[1]
    table.clear_if_expired(1, 9 * SECOND)
    assert not table.dirty[1]
    table.store(1, Circuit(), OPEN)
    table.clear_if_expired(1, 99 * SECOND)
    assert table.state(1, 99 * SECOND) == "half_open", "only an event closes it, not time"
    table.reset(1, 7)
    assert table.read(1) == Circuit(recovered=7)
    assert not table.dirty[1]


def test_failures_in_a_row(path):
    table = CircuitTable(path)
    elsewhere(path, "t.record_failure(1, 5); t.record_failure(1, 6)")
    assert table.read(1) == Circuit(failed=6, failures_in_a_row=2)
    elsewhere(path, "t.record_success(1)")
    assert table.read(1).failures_in_a_row == 0


def test_cursors_advance_over_all_processes(path):
    table = CircuitTable(path)
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"from pathlib import Path; from nexus.fleet.circuits import CircuitTable; t = "
                f"CircuitTable(Path({str(path)!r}))\n"
                "print(*[t.next_cursor(7) for _ in range(2000)])",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    cursors = [int(word) for worker in workers for word in worker.communicate()[0].split()]
    assert sorted(cursors) == list(range(1, 6001))
    assert table.next_cursor(7) == 6001
    assert table.next_cursor(8) == 1


def test_a_lock_holder_that_was_stopped_blocks_nobody(path):
    """The lock is held by another open file, as by a process that gets SIGSTOP while it holds
    it."""
    table, stopped = CircuitTable(path), LockFile(path)
    assert table.next_cursor(7) == 1
    for byte in range(COLUMNS, 3 * COLUMNS):
        stopped.acquire(byte)
    started = time.monotonic()
    assert [table.next_cursor(7) for _ in range(100)] == list(range(2, 102))
    assert time.monotonic() - started < 5, "one short wait, not one for each"
    stopped.close()
    assert table.next_cursor(7) == 102
