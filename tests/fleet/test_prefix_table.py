"""The table of prefixes: several processes' entries, and which are replaced."""

from nexus.fleet.prefix_table import BUCKETS, HOLDERS, WAYS, PrefixTable


def test_all_who_opened_it_see_the_last_backends_first(tmp_path):
    one, other = PrefixTable(tmp_path / "prefixes"), PrefixTable(tmp_path / "prefixes")
    assert one.holders(7) == ()
    one.add(7, 3, 100)
    other.add(7, 511, 110)
    assert one.holders(7) == other.holders(7) == (511, 3)
    one.add(7, 3, 120)
    assert other.holders(7) == (3, 511)
    for column in range(20, 20 + HOLDERS):
        one.add(7, column, 130)
    assert other.holders(7) == tuple(range(19 + HOLDERS, 19, -1))
    assert PrefixTable(None).holders(7) == ()


def test_a_full_bucket_forgets_what_was_used_least_recently():
    table = PrefixTable(None)
    keys = [1 + n * BUCKETS for n in range(WAYS + 1)]
    for second, key in enumerate(keys[:WAYS]):
        table.add(key, 1, 10 * second)
    table.add(keys[0], 1, 100)  # used again
    table.add(keys[WAYS], 2, 110)
    assert [bool(table.holders(key)) for key in keys] == [True, False, True, True, True]


def test_stamps_go_round():
    table = PrefixTable(None)
    last = (1 << 22) - 1
    for second, key in enumerate(1 + n * BUCKETS for n in range(WAYS)):
        table.add(key, 1, last - 10 + second)
    table.add(1, 1, last + 20)
    table.add(1 + WAYS * BUCKETS, 1, last + 30)
    assert table.holders(1) == (1,)
    assert table.holders(1 + BUCKETS) == ()


def test_keys_of_real_size():
    table = PrefixTable(None)
    key = (65536 << 32 | 0xFFFFFFFF) + 1
    table.add(key, 0, 0)
    assert table.holders(key) == (0,)
