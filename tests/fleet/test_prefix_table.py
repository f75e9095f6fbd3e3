"""The table of prefixes: several processes' entries, and which are replaced."""

from nexus.fleet.prefix_table import BUCKETS, HOLDERS, WAYS, PrefixTable

KEY = 0xFEDC_BA98_7654_3210


def test_all_who_opened_it_see_the_last_backends_first(tmp_path):
    one, other = PrefixTable(tmp_path / "prefixes"), PrefixTable(tmp_path / "prefixes")
    assert one.holders(KEY) == ()
    one.add([KEY], 3)
    other.add([KEY], 511)
    assert one.holders(KEY) == other.holders(KEY) == (511, 3)
    one.add([KEY], 3)
    assert other.holders(KEY) == (3, 511)
    for column in range(20, 20 + HOLDERS):
        one.add([KEY], column)
    assert other.holders(KEY) == tuple(range(19 + HOLDERS, 19, -1))
    assert PrefixTable(None).holders(KEY) == ()


def test_a_full_bucket_forgets_what_was_used_least_recently():
    table = PrefixTable(None)
    keys = [(n + 1 << 40) + 7 for n in range(WAYS + 1)]
    table.add(keys[:WAYS], 1)
    table.add(keys[:1], 1)  # used again
    table.add(keys[WAYS:], 2)
    assert [table.holders(key) for key in keys] == [(1,), (), (1,), (1,), (2,)]
    others = [key + 1 for key in keys]
    table.add(others, 5)
    assert table.holders(keys[WAYS]) == (2,), "another bucket"
    assert (keys[0] + BUCKETS) % BUCKETS == keys[0] % BUCKETS


def test_keys_of_any_size():
    table = PrefixTable(None)
    for key in (0, 1, (1 << 64) - 1):
        table.add([key], 0)
        assert table.holders(key) == (0,)


def test_the_seed_is_that_of_the_table(tmp_path):
    one, other = PrefixTable(tmp_path / "prefixes"), PrefixTable(tmp_path / "prefixes")
    assert one.seed == other.seed
    assert len({one.seed, PrefixTable(tmp_path / "others").seed, PrefixTable(None).seed, 0}) == 4


def test_a_process_knows_the_prefixes_of_its_own_last_prompt(tmp_path):
    one, other = PrefixTable(tmp_path / "p"), PrefixTable(tmp_path / "p")
    assert not one.repeats(KEY)
    one.add([KEY, KEY + 1], 3)
    assert one.repeats(KEY)
    assert one.repeats(KEY + 1)
    assert not other.repeats(KEY), "another process's"
    one.add([KEY + 2], 3)
    assert not one.repeats(KEY)
