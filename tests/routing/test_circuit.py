"""When a circuit opens, for how long, and how traffic comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.config.records import CircuitBreaker
from nexus.routing.circuit import open_for_s, should_open

SETTINGS = CircuitBreaker(failures=5, open_seconds=5, max_open_seconds=60)


@pytest.mark.parametrize(
    ("successes", "failures", "opens"),
    [
        (0, 4, False),  # too few to tell
        (0, 5, True),
        (5, 5, True),  # half of all
        (6, 5, False),
        (1000, 400, False),
    ],
)
def test_opening(successes, failures, opens):
    assert should_open(successes, failures, SETTINGS, share=0.5, in_a_row=1) is opens


def test_failures_in_a_row_open_it_whatever_went_before():
    assert should_open(100_000, 5, SETTINGS, share=0.5, in_a_row=5)
    assert not should_open(100_000, 5, SETTINGS, share=0.5, in_a_row=4)


@pytest.mark.parametrize(
    ("consecutive_opens", "seconds"), [(1, 5), (2, 10), (3, 20), (4, 40), (5, 60), (500, 60)]
)
def test_open_for_longer_each_time(consecutive_opens, seconds):
    assert open_for_s(consecutive_opens, SETTINGS, chance=0.5) == seconds


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_the_spread_is_small(consecutive_opens, chance):
    assert (
        0.9
        <= open_for_s(consecutive_opens, SETTINGS, chance=chance)
        / open_for_s(consecutive_opens, SETTINGS, chance=0.5)
        <= 1.1
    )
