"""When a backend counts as healthy."""

import pytest

from nexus.health.thresholds import ProbeState


@pytest.mark.parametrize(
    ("results", "statuses"),
    [
        ("+", "h"),
        ("-", "u"),
        ("+--+---", "hhhhhhu"),  # two failures, a success between, then three
        ("---+-++", "uuuuuuh"),
        ("+---++-", "hhhuuhh"[:3] + "u" + "uhh"),
    ],
)
def test_state_machine(results, statuses):
    state, seen = ProbeState(), ""
    for result in results:
        state = state.after(result == "+", failure_threshold=3, recovery_threshold=2)
        seen += state.status[0]
    assert seen == statuses
