"""The table of stored responses: what it knows, for how long, and what it forgets."""

from nexus.fleet.sticky_table import BUCKETS, ENTRIES, LIFETIME_S, WAYS, StickyTable, _digest

BACKENDS = ["one", "two"]


def test_an_id_is_known_to_all_who_open_the_file(tmp_path):
    written, read = StickyTable(tmp_path / "sticky"), StickyTable(tmp_path / "sticky")
    assert read.find("resp_1", BACKENDS, 5) is None
    written.add("resp_1", "two", 5)
    assert read.find("resp_1", BACKENDS, 6) == "two"
    assert read.find("resp_1", ["one"], 6) == "", "its backend is gone"
    written.add("resp_1", "one", 7)
    assert read.find("resp_1", BACKENDS, 8) == "one"
    assert read.used(8) == 1


def test_use_renews_it_and_a_day_without_use_ends_it():
    table = StickyTable(None)
    table.add("resp_1", "one", 100)
    assert table.find("resp_1", BACKENDS, 100 + LIFETIME_S - 1) == "one"
    assert table.find("resp_1", BACKENDS, 100 + 2 * LIFETIME_S - 2) == "one"
    assert table.find("resp_1", BACKENDS, 100 + 4 * LIFETIME_S) is None
    assert table.used(100 + 4 * LIFETIME_S) == 0


def test_a_full_bucket_forgets_what_was_used_least_recently():
    table = StickyTable(None)
    same, nth = [], 0
    while len(same) <= WAYS:
        if _digest(f"resp_{nth}") % BUCKETS == _digest("resp_0") % BUCKETS:
            same.append(f"resp_{nth}")
        nth += 1
    for now_s, name in enumerate(same[:WAYS], 1):
        table.add(name, "one", now_s)
    table.find(same[0], BACKENDS, 1000)
    table.add(same[WAYS], "two", 1001)
    known = [table.find(name, BACKENDS, 1002) for name in same]
    assert known == ["one", None, *["one"] * (WAYS - 2), "two"]
    assert (table.used(1002), ENTRIES) == (WAYS, 65536)


def test_an_id_that_is_added_again_is_found_at_every_moment(tmp_path):
    """Other processes read between any two writes."""
    table, other = StickyTable(tmp_path / "sticky"), StickyTable(tmp_path / "sticky")
    table.add("id", "a", 1)
    cells, found = table._cells, []

    class Watched:
        def __getitem__(self, at):
            return cells[at]

        def __setitem__(self, at, value):
            cells[at] = value
            found.append(other.find("id", ["a", "b"], 2))

    table._cells = Watched()
    table.add("id", "a", 2)
    table.add("id", "b", 2)
    assert found == ["a", "b"]
