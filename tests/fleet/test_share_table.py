"""What each key has used, and in which order that puts their requests."""

import multiprocessing
from collections import Counter

import pytest

from nexus.fleet.share_table import TIME_BITS, ShareTable


def serve(table: ShareTable, weights: dict[str, float], tokens: dict[str, int], times: int):
    """Which keys are served, one at a time, if all of them always have requests that wait."""
    for key in weights:
        table.join(table.cell(key))
    for _ in range(times):
        key = min(weights, key=lambda key: table.waiting(table.cell(key)))
        charged = table.sent(table.cell(key), weights[key])
        table.ended(table.cell(key), weights[key], charged=charged, tokens=tokens[key])
        yield key


@pytest.mark.parametrize(
    ("weights", "tokens", "expected"),
    [
        ({"a": 1, "b": 1}, {"a": 500, "b": 500}, {"a": 400, "b": 400}),
        ({"a": 3, "b": 1}, {"a": 500, "b": 500}, {"a": 600, "b": 200}),
        ({"a": 1, "b": 1}, {"a": 3000, "b": 1000}, {"a": 200, "b": 600}),
        ({"a": 0.5, "b": 1, "c": 1.5}, dict.fromkeys("abc", 900), {"a": 133, "b": 267, "c": 400}),
    ],
)
def test_keys_get_tokens_by_their_weight(weights, tokens, expected):
    served = Counter(serve(ShareTable(None), weights, tokens, 800))
    assert all(abs(served[key] - count) <= 3 for key, count in expected.items()), served


def test_a_key_that_comes_is_next_and_has_no_credit():
    table = ShareTable(None)
    a, b = table.cell("a"), table.cell("b")
    table.join(a)
    for _ in range(50):
        table.ended(a, 1, charged=table.sent(a, 1), tokens=1000)
        table.join(a)
    table.join(b)
    assert table.waiting(b) < table.waiting(a)
    charged = table.sent(b, 1)
    table.ended(b, 1, charged=charged, tokens=2000)
    table.join(b)
    assert table.waiting(a) < table.waiting(b), "it cannot make up for the time when it had none"


def test_requests_in_progress_are_charged_the_mean():
    table = ShareTable(None)
    a, b = table.cell("a"), table.cell("b")
    for _ in range(100):
        table.ended(a, 1, charged=table.sent(a, 1), tokens=40)
    before = table.waiting(a)
    assert 40 <= table.sent(a, 1) <= 60
    assert table.waiting(a) > before
    table.join(b)
    assert table.waiting(b) < table.waiting(a)


def test_times_that_no_ticket_could_hold_start_anew():
    table = ShareTable(None)
    a, b = table.cell("a"), table.cell("b")
    table.ended(a, 1, charged=table.sent(a, 1), tokens=1 << (TIME_BITS - 1))
    table.sent(a, 1)
    assert table.waiting(a) < 1 << 40
    assert table.start(b) == 1


def test_keys_of_a_full_table_share_its_last_cell():
    table = ShareTable(None, keys=4)
    cells = [table.cell(f"key {number}") for number in range(6)]
    assert len(set(cells[:4])) == 4
    assert cells[4] == cells[5] == max(cells)
    assert [table.cell(f"key {number}") for number in range(6)] == cells


def cells_of(path, found):
    table = ShareTable(path)
    found.put([table.cell(f"key {number}") for number in range(300)])


def test_processes_agree_on_the_cells(tmp_path):
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    processes = [
        context.Process(target=cells_of, args=(tmp_path / "shares", found)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    cells = [found.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    assert all(one == cells[0] for one in cells)
    assert len(set(cells[0])) == 300
