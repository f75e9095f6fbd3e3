"""Costly pages are made so often and no more."""

import pytest

from nexus.admin.limits import Costly, TooOften


def test_ten_a_second_then_copies():
    now, made = [0.0], []
    costly = Costly(per_s=10, clock=lambda: now[0])

    def make(key):
        made.append(key)
        return len(made)

    assert [costly.page("a", lambda: make("a")) for _ in range(10)] == list(range(1, 11))
    assert costly.page("a", lambda: make("a")) == 10  # the copy
    with pytest.raises(TooOften):
        costly.page("b", lambda: make("b"))
    now[0] = 0.2
    assert [costly.page("b", lambda: make("b")) for _ in range(3)] == [11, 12, 12]
    now[0] = 60.0
    assert costly.page("a", lambda: make("a")) == 13
    for key in range(100):
        now[0] += 1
        costly.page(key, lambda: 0)
    assert len(costly._copies) == 32


def test_what_fails_is_not_kept():
    costly = Costly(per_s=2, clock=lambda: 0.0)
    assert costly.page("a", lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        costly.page("a", lambda: 1 // 0)
    with pytest.raises(TooOften):
        costly.page("a", lambda: 2)
