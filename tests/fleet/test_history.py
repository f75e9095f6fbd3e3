"""The rings of the requests that ended last."""

import pytest

from nexus.errors import FAULTS
from nexus.fleet.history import (
    AT_ONCE,
    CELL,
    CELLS,
    LATER,
    History,
    HistoryTable,
    RequestRecord,
)
from nexus.fleet.outcome import AttemptRecord, Outcome


def record(n, **more):
    fields = {
        "id": f"req_{n}",
        "ended": float(n),
        "order": float(n),
        "endpoint": "chat_completions",
        "requested_model": "m",
        "model": "m",
        "backend": "b",
        "status": 200,
        "duration_ms": 1.5,
    }
    return RequestRecord(**{**fields, **more})


def ids(found):
    return [entry.id for entry in found]


@pytest.fixture(params=["shared", "alone"])
def table(request, tmp_path):
    made = HistoryTable(tmp_path / "recent" if request.param == "shared" else None)
    yield made
    made.close()


def test_what_is_written_is_read(table):
    ring = table.ring(0)
    attempts = (AttemptRecord("a", "m", "refused", 0.5), AttemptRecord("b", "m", "success", 1.0))
    full = record(
        1,
        error_type="timeout",
        fault="first_byte_timeout",
        reason="failover",
        stream=True,
        ttft_ms=0.5,
        prompt_tokens=1,
        completion_tokens=2,
        attempts=attempts,
    )
    ring.write(full)
    assert table.latest([0], limit=10) == [full]
    assert table.latest([0], limit=0) == []


def test_the_oldest_goes(table):
    ring = table.ring(0)
    for n in range(CELLS + 10):
        ring.write(record(n))
    assert ids(table.latest([0], limit=1000)) == [f"req_{n}" for n in range(CELLS + 9, 9, -1)]


def test_only_what_is_new(table):
    ring, seen = table.ring(0), {}
    ring.write(record(1))
    assert ids(table.newer_than(seen, [0])) == ["req_1"]
    assert table.newer_than(seen, [0]) == []
    ring.write(record(2))
    ring.write(record(3))
    assert sorted(ids(table.newer_than(seen, [0]))) == ["req_2", "req_3"]


def test_the_next_lessee_goes_on(tmp_path):
    first, second = HistoryTable(tmp_path / "recent"), HistoryTable(tmp_path / "recent")
    ring = first.ring(3)
    for n in range(5):
        ring.write(record(n))
    second.ring(3).write(record(5))
    second.ring(1).write(record(6))
    assert ids(first.latest([1, 3], limit=3)) == ["req_6", "req_5", "req_4"]
    assert ids(first.latest([0, 2, 200], limit=3)) == []  # nobody has written there


@pytest.mark.parametrize("name", ["x" * 200, "\N{PILE OF POO}" * 200, '"\\' * 100])
def test_long_names_are_cut(table, name):
    attempts = tuple(AttemptRecord(name, name, "refused", 1.0) for _ in range(11))
    table.ring(0).write(
        record(1, id="x" * 128, requested_model=name, model=name, backend=name, attempts=attempts)
    )
    (found,) = table.latest([0], limit=1)
    assert name.startswith(found.backend)
    assert len(found.attempts) == 6
    assert found.status == 200


def test_a_record_that_is_being_written_is_left_out(tmp_path):
    table = HistoryTable(tmp_path / "recent")
    ring = table.ring(0)
    ring.write(record(1))
    ring.write(record(2))
    file = (tmp_path / "recent").open("r+b")
    with file:
        file.seek(CELL)  # the first record's cell
        file.write(bytes(8))
    assert ids(table.latest([0], limit=9)) == ["req_2"]


def test_a_busy_process_writes_most_of_it_later():
    """A few at once, the others when their time is over; nothing waits where there is no timer."""
    table, due = HistoryTable(None), []
    history = History(table.ring(0))
    shown = lambda: {entry.order for entry in table.latest([0], limit=1000)}  # noqa: E731

    def end(numbers, *, failed=()):
        for number in numbers:
            fault = FAULTS["connection_lost"] if number in failed else None
            history.record(
                Outcome(
                    model_label="m",
                    backend_label="b",
                    status=200,
                    fault=fault,
                    ended=float(number),
                    duration_s=0.1,
                )
            )

    end(range(2 * AT_ONCE))
    assert len(shown()) == 2 * AT_ONCE
    history.batch_with(due.append)
    end(range(100, 1100), failed={200})
    assert len(due) == 1, "one timer for all of them"
    assert max(shown()) == 100 + AT_ONCE - 1
    due.pop()()
    assert shown() == {200, *range(1101 - CELLS, 1100)}, (
        "as many as there is room for, while it was not known as busy"
    )

    end(range(2000, 3000), failed={2500, 2501})
    assert max(shown()) == 2000 + AT_ONCE - 1
    due.pop()()
    later = {number for number in shown() if number >= 2000 + AT_ONCE}
    assert {2500, 2501} < later, "those that failed are all there"
    assert LATER <= len(later) <= LATER + 3, "of the others some"
    assert min(later) < 2200, "from all of the time"
    assert max(later) > 2800

    end([4000])
    assert 4000 in shown(), "at once again"
    due.pop()()
    end(range(5000, 5000 + AT_ONCE + 5))
    due.pop()()
    assert set(range(5000, 5000 + AT_ONCE + 5)) < shown(), "all, now that it is not busy"


def test_a_clock_that_is_set_back_changes_no_order(table):
    ring = table.ring(0)
    for n, ended in enumerate([1000.0, 2000.0, 500.0, 600.0, 5.0]):
        ring.write(record(n, ended=ended))
    assert ids(table.latest([0], limit=3)) == ["req_4", "req_3", "req_2"]
