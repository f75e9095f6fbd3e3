"""Pages are rendered at most so many times a second."""

import pytest

from nexus.admin.page_cache import PageCache, TooManyRenders


def test_ten_a_second_then_copies():
    now, made = [0.0], []
    cache = PageCache(per_s=10, clock=lambda: now[0])

    def make(key):
        made.append(key)
        return len(made)

    assert [cache.get("a", lambda: make("a")) for _ in range(10)] == list(range(1, 11))
    assert cache.get("a", lambda: make("a")) == 10  # the copy
    with pytest.raises(TooManyRenders):
        cache.get("b", lambda: make("b"))
    now[0] = 0.2
    assert [cache.get("b", lambda: make("b")) for _ in range(3)] == [11, 12, 12]
    now[0] = 60.0
    assert cache.get("a", lambda: make("a")) == 13
    for key in range(100):
        now[0] += 1
        cache.get(key, lambda: 0)
    assert len(cache._copies) == 32


def test_what_fails_is_not_kept():
    cache = PageCache(per_s=2, clock=lambda: 0.0)
    assert cache.get("a", lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 // 0)
    with pytest.raises(TooManyRenders):
        cache.get("a", lambda: 2)
