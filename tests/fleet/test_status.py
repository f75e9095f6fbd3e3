"""The status of backends, and slow start."""

from hypothesis import given
from hypothesis import strategies as st

from nexus.fleet.status import share_after


@given(st.floats(0, 1e6), st.floats(0.1, 100))
def test_share_grows_to_the_whole(recovered_for_s, slow_start_s):
    share = share_after(recovered_for_s, slow_start_s)
    assert 0 < share <= 1
    assert share <= share_after(recovered_for_s + 1, slow_start_s)
    assert share_after(slow_start_s, slow_start_s) == 1
