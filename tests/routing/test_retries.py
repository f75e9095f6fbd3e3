"""The budget for retries, and the pause before one."""

from hypothesis import given
from hypothesis import strategies as st

from nexus.routing.retries import backoff_s, may_retry


@given(st.integers(0, 10_000), st.integers(0, 20))
def test_an_outage_is_not_multiplied(requests, wanted_each):
    """Whatever requests want, the host makes at most a hundred attempts more in ten seconds, and
    half as many again."""
    retries = 0
    for _ in range(min(requests * wanted_each, 20_000)):
        if not may_retry(requests, retries, window_s=10):
            break
        retries += 1
    assert retries <= 100 + requests / 2
    assert retries >= min(requests * wanted_each, 100 + requests // 2)


def test_one_failing_backend_of_two_costs_the_clients_nothing():
    assert all(
        may_retry(requests, requests // 2, window_s=10) for requests in range(0, 100_000, 100)
    )


@given(st.integers(1, 10), st.floats(0, 1, exclude_max=True))
def test_backoff_doubles_within_its_spread(nth, chance):
    assert 0.05 * 2 ** (nth - 1) <= backoff_s(nth, chance=chance) <= 0.1 * 2 ** (nth - 1)
