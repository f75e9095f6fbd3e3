"""The table of what each process has in hand."""

from hypothesis import given
from hypothesis import strategies as st

from nexus.fleet.load_table import HALF_WINDOW_NS, NORMAL_TICKET, LoadTable


def table(rows: int = 3) -> LoadTable:
    made = LoadTable(None)
    made.use_row(rows - 1)
    return made


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.booleans()), max_size=200))
def test_outcomes_are_those_of_the_window(events):
    """What is counted lies within the current half window and the one before, whichever row saw
    it."""
    events.sort(key=lambda event: event[1])
    load = table()
    half_s = HALF_WINDOW_NS // 1_000_000_000
    for row, at_s, success in events:
        load.row(row).count_outcome(5, at_s * 1_000_000_000, success=success)
        load.row(row).count_outcome(6, at_s * 1_000_000_000, success=not success)
    now_s = max((at for _, at, _ in events), default=0)
    kept = [success for _, at, success in events if at // half_s >= now_s // half_s - 1]
    now_ns = now_s * 1_000_000_000
    assert load.outcomes(5, now_ns) == (kept.count(True), kept.count(False))
    assert load.outcomes(6, now_ns) == (kept.count(False), kept.count(True))
    assert load.outcomes(5, now_ns + 2 * HALF_WINDOW_NS) == (0, 0)
    assert load.outcomes(5, now_ns, since_ns=now_ns + HALF_WINDOW_NS) == (0, 0)
    years_ns = 3 * 365 * 86_400 * 1_000_000_000 // HALF_WINDOW_NS * HALF_WINDOW_NS
    load.row(0).count_outcome(7, years_ns, success=False)
    assert load.outcomes(7, years_ns + 1) == (0, 1), "on a host that has been up for years"
    assert load.outcomes(7, years_ns + 1, since_ns=years_ns + 1) == (0, 0), (
        "of the half window that began before"
    )


def test_requests_and_retries():
    load = table()
    for row in range(3):
        load.row(row).request_started(1)
        load.row(row).count_retry(2)
    assert load.requests_and_retries(3) == (3, 3)
    assert load.in_flight() == 3


def test_the_earliest_ticket_of_a_live_process():
    load = table()
    load.row(0).post_ticket(4, 100 | NORMAL_TICKET)
    load.row(0).record_queue_poll(1000)
    assert load.earliest_ticket(4, since_ns=900) == 100 | NORMAL_TICKET
    assert not load.earliest_ticket(5, since_ns=900), "for another backend"
    assert not load.earliest_ticket(4, since_ns=1001), "its process stands still"
    load.row(1).post_ticket(4, 200)
    load.row(1).record_queue_poll(1000)
    assert load.earliest_ticket(4, since_ns=900) == 200, "of high priority"


def test_queued_count_as_pending_but_take_no_room():
    load = table()
    load.row(1).add_queued(4, 1)
    load.row(2).attempt_started(4)
    assert load.pending(4) == 1
    assert load.pending_in(4, [0, 1, 2]) == 2
    assert load.waiting() == load.waiting_in([1]) == 1
    load.row(1).clear()
    assert load.waiting() == 0
    assert load.pending_in(4, [0, 1, 2]) == 1
