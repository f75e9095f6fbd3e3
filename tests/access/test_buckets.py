"""The arithmetic of buckets, against a model that knows every unit by its time."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.access import buckets

SECOND = 1_000_000_000
steps = st.lists(st.tuples(st.integers(0, 2 * SECOND), st.integers(1, 10)), min_size=1, max_size=25)


class Model:
    """A bucket as a fraction of units that refills with time."""

    def __init__(self, burst: int, unit: int) -> None:
        self.burst, self.unit, self.left, self.now = burst, unit, Fraction(burst), 0

    def take(self, now: int, units: int) -> bool:
        self.left = min(Fraction(self.burst), self.left + Fraction(now - self.now, self.unit))
        self.now = now
        admitted = self.left >= units or self.left == self.burst
        if admitted:
            self.left -= units
        return admitted


@settings(deadline=None, max_examples=50)
@given(steps=steps, amount=st.integers(1, 1000), burst=st.integers(1, 40))
def test_admits_what_the_model_admits(steps, amount, burst):
    unit = buckets.unit_ns(amount, SECOND)
    model, full_at, now = Model(burst, unit), 0, 0
    for pause, units in steps:
        now += pause
        before = full_at
        full_at, wait, left = buckets.admit(before, units, now, unit, burst)
        assert (wait <= 0) == model.take(now, units)
        if wait <= 0:
            assert full_at == buckets.charge(before, units, now, unit=unit)
        else:
            later = now + wait
            assert full_at == before
            assert buckets.admit(before, units, later, unit, burst)[1] == 0
            assert buckets.admit(before, units, later - 1, unit, burst)[1] == 1
        assert left == max(0, model.left // 1)
        assert burst - buckets.used(full_at, now, unit=unit) == model.left // 1


@settings(deadline=None, max_examples=50)
@given(steps=steps, amount=st.integers(1, 1000))
def test_no_interval_has_more_than_the_bound(steps, amount):
    """At most C + C·T/period single units within any T."""
    unit = buckets.unit_ns(amount, SECOND)
    full_at, now, admitted = 0, 0, []
    for pause, units in steps:
        now += pause
        for _ in range(units):
            full_at, wait, _ = buckets.admit(full_at, 1, now, unit, amount)
            if wait <= 0:
                admitted.append(now)
    for first, start in enumerate(admitted):
        for last in range(first, len(admitted)):
            span = admitted[last] - start
            assert (last - first + 1 - amount) * SECOND <= amount * span


@given(
    reserved=st.integers(0, 500),
    used=st.integers(0, 1500),
    taken=st.integers(0, 300),
)
def test_a_settled_bucket_is_as_if_the_use_had_been_charged(reserved, used, taken):
    unit, now = 1000, 10 * SECOND
    full_at = buckets.charge(0, taken + 1, now, unit=unit)
    with_reserve = buckets.charge(full_at, reserved, now, unit=unit)
    settled = buckets.settle(
        with_reserve, now, unit=unit, reserved=reserved, used=used, full_since_reserve=False
    )
    assert settled == buckets.charge(full_at, used, now, unit=unit)


def test_a_request_larger_than_the_bucket_is_served_alone():
    full_at, wait, left = buckets.admit(0, 500, 100, 10, 20)
    assert wait <= 0
    assert (full_at, left) == (100 + 500 * 10, 0)
    assert buckets.admit(full_at, 500, 100, 10, 20) == (full_at, 5000, 0)
    assert buckets.admit(full_at, 1, 100, 10, 20) == (full_at, 5000 - 190, 0)


def test_nothing_is_returned_to_a_bucket_that_was_full_since():
    settled = buckets.settle(7000, 5000, unit=10, reserved=100, used=0, full_since_reserve=True)
    assert settled == 7000


@given(missing=st.integers(0, 1000), before=st.integers(1, 1000), after=st.integers(1, 1000))
def test_another_rate_keeps_the_used_part(missing, before, after):
    full_at = 50 + missing * before
    converted = buckets.convert(full_at, 50, before=before, after=after)
    assert buckets.used(converted, 50, unit=after) == missing
