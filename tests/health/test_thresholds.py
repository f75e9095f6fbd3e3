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
    standing, seen = ProbeState(), ""
    for result in results:
        standing = standing.after(result == "+", failure_threshold=3, recovery_threshold=2)
        seen += standing.status[0]
    assert seen == statuses
