"""The table of levels: whole changes, whatever happens to the processes that make them."""

import signal
import subprocess
import sys
import time

from nexus.fleet.limit_names import LONGEST_NAME
from nexus.fleet.limit_table import LimitTable

A, B = (11, 12), (21, 22)
KILLED = """
import os, signal, sys
from pathlib import Path
from nexus.fleet.limit_table import LimitTable

class Cells:
    def __init__(self, cells, left):
        self.cells, self.left = cells, left
    def __getitem__(self, at):
        return self.cells[at]
    def __setitem__(self, at, value):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        self.cells[at] = value

path, left = Path(sys.argv[1]), int(sys.argv[2])
table = LimitTable(path, slot=1, slots=lambda: 2)
table._cells = Cells(table._cells, left)
assert table.acquire()
for digest in ((11, 12), (21, 22)):
    record = table.bucket(digest, 1000)
    table.stage_level(record, 5000, 7, 1000)
assert table.stage_progress((31, 32), 1, 1000)
table.commit()
table.release()
"""
STOPPED = """
import sys, time
from pathlib import Path
from nexus.fleet.limit_table import LimitTable
table = LimitTable(Path(sys.argv[1]))
assert table.acquire()
print("locked", flush=True)
sys.stdin.read(1)
table.stage_level(table.bucket((11, 12), 1000), 9000, 7, 1000)
table.commit()
table.release()
"""


def change(table, digest, full_at, now=1000):
    assert table.acquire()
    record = table.bucket(digest, now)
    if record is not None:
        table.stage_level(record, full_at, 7, now)
        table.commit()
    table.release()
    return record


def level(table, digest):
    assert table.acquire()
    record = table._find(digest)
    found = table.level(record)[0] if record is not None else 0
    table.release()
    return found


def test_a_level_is_kept_and_what_is_not_committed_is_not(tmp_path):
    table, other = LimitTable(tmp_path / "l"), LimitTable(tmp_path / "l")
    change(table, A, 5000)
    assert other.acquire()
    other.stage_level(other.bucket(A, 1000), 9000, 7, 1000)
    other.release()
    assert change(table, B, 6000) is not None
    assert (level(other, A), level(other, B)) == (5000, 6000)


def test_a_process_killed_after_any_write_changes_all_or_nothing(tmp_path):
    """Every write is tried as the last one, until the change is whole."""
    for writes in range(100):
        path = tmp_path / str(writes)
        code = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), str(writes)], check=False
        ).returncode
        table = LimitTable(path, slots=lambda: 2)
        levels = level(table, A), level(table, B)
        assert table.acquire()
        levels += (table.in_progress((31, 32)),)
        table.release()
        table.close()
        assert levels in ((0, 0, 0), (5000, 5000, 1))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert levels == (5000, 5000, 1)
    assert writes > 20


def test_a_holder_that_was_stopped_is_not_waited_for(tmp_path):
    table = LimitTable(tmp_path / "l")
    holder = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(tmp_path / "l")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == b"locked\n"
        holder.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        assert not table.acquire()
        assert time.monotonic() - started < 5
        holder.send_signal(signal.SIGCONT)
        holder.stdin.write(b"x")
        holder.stdin.close()
        holder.wait(10)
    assert level(table, A) == 9000


def test_requests_of_a_process_that_is_gone_do_not_count(tmp_path):
    alive = {0, 1}
    tables = [
        LimitTable(tmp_path / "l", slot=slot, slots=lambda: 2, lives=alive.__contains__)
        for slot in (0, 1)
    ]

    def progress(table, step):
        assert table.acquire()
        assert table.stage_progress(A, step, 1000)
        table.commit()
        found = table.in_progress(A)
        table.release()
        return found

    assert [progress(tables[0], 1), progress(tables[1], 1), progress(tables[1], 1)] == [1, 2, 3]
    alive.remove(1)
    assert progress(tables[0], 1) == 2
    tables[1].clear_slot()
    alive.add(1)
    assert progress(tables[1], 1) == 3
    assert progress(tables[0], -1) == 2


def test_requests_of_a_slots_earlier_holder_do_not_count(tmp_path):
    """Not even before the new holder has opened the table."""
    starts = {0: 1, 1: 2}

    def table(slot):
        return LimitTable(tmp_path / "l", slot=slot, slots=lambda: 2, starts=starts.__getitem__)

    def progress(table, step=0):
        assert table.acquire()
        if step:
            assert table.stage_progress(A, step, 1000, "a")
            table.commit()
        found = table.in_progress(A)
        table.release()
        assert table.stored() == {"a": (found, 0)}
        return found

    one, other = table(0), table(1)
    assert [progress(one, 1), progress(other, 1), progress(other, 1)] == [1, 2, 3]
    starts[1] = 3
    assert progress(one) == 1
    assert [progress(table(1), 1), progress(one)] == [2, 2]


def test_a_new_process_of_a_slot_starts_at_nothing(tmp_path):
    table = LimitTable(tmp_path / "l", slot=3, slots=lambda: 4)
    assert table.acquire()
    table.stage_progress(A, 1, 1000)
    table.commit()
    table.clear_slot()
    assert table.in_progress(A) == 0
    table.release()


def test_full_records_are_used_again_and_a_full_table_has_no_room(tmp_path):
    table = LimitTable(None, records=4)
    digests = [(100 + number, number) for number in range(6)]
    assert [change(table, digest, 5000) is not None for digest in digests] == [True] * 4 + [
        False
    ] * 2
    assert change(table, digests[5], 9000, now=6000) is not None
    assert level(table, digests[5]) == 9000


def test_what_is_stored_is_shown_by_name(tmp_path):
    alive = {0, 1}
    tables = [
        LimitTable(tmp_path / "l", slot=slot, slots=lambda: 2, lives=alive.__contains__)
        for slot in (0, 1)
    ]
    for table in tables:
        assert table.acquire()
        bucket = table.bucket(A, 1000, "tokens of a")
        table.stage_level(bucket, 5000, 7, 1000)
        assert table.stage_progress(B, 1, 1000, "parallel of b" + "!" * 300)
        table.commit()
        table.release()
    [*found] = tables[0].stored().items()
    assert found[0] == ("tokens of a", (5000, 7))
    assert found[1] == (("parallel of b" + "!" * 300)[:LONGEST_NAME], (2, 0))
    alive.remove(1)
    assert [*tables[0].stored().values()] == [(5000, 7), (1, 0)]


def test_a_record_that_is_used_again_has_a_new_name():
    table = LimitTable(None, records=1)
    for digest, name, now in ((A, "old", 1000), (B, "new", 6000)):
        assert table.acquire()
        table.stage_level(table.bucket(digest, now, name), now + 1000, 7, now)
        table.commit()
        table.release()
        assert table.stored() == {name: (now + 1000, 7)}


def test_changes_of_several_processes_are_all_counted(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom nexus.fleet.limit_table import LimitTable\n"
        "t = LimitTable(Path(sys.argv[1]))\nn = 0\n"
        "while n < 500:\n"
        "    if t.acquire():\n"
        "        r = t.bucket((11, 12), 1000)\n"
        "        t.stage_level(r, max(1000, t.level(r)[0]) + 1, 7, 0)\n"
        "        t.commit(); t.release(); n += 1\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "l")]) for _ in range(4)
    ]
    assert [child.wait(60) for child in children] == [0] * 4
    assert level(LimitTable(tmp_path / "l"), A) == 3000


def test_a_change_does_not_reuse_a_record_that_it_changes():
    """An idle bucket's record is free for others, but not once it is charged."""
    table = LimitTable(None, records=1)
    assert table.acquire()
    record = table.bucket(A, 1000)
    assert record is not None
    table.stage_level(record, 1000, 7, 1000)
    table.commit()
    table.release()
    assert table.acquire()
    table.stage_level(record, 9000, 7, 1000)
    assert table.bucket(B, 2000) is None
    table.release()
    assert table.acquire()
    assert table.bucket(B, 2000) == record
    table.release()
    table.close()
