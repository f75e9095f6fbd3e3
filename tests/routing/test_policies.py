"""What policies demand, from tables."""

import pytest

from nexus.config.routing_records import Policy
from nexus.routing.policies import Constraints, Policies

SECRET = Policy(model_pattern="secret-*", privacy="restricted")
LARGE = Policy(model_pattern="*-70b", min_tier=3)


@pytest.mark.parametrize(
    ("names", "constraints"),
    [
        (("m",), Constraints()),
        (("secret-m",), Constraints(restricted=True)),
        (("llama-70b",), Constraints(min_tier=3)),
        (("secret-70b",), Constraints(restricted=True, min_tier=3)),
        (("nick", "secret-70b"), Constraints(restricted=True, min_tier=3)),
        (("SECRET-m",), Constraints()),
    ],
)
def test_all_that_match_hold(names, constraints):
    assert Policies([SECRET, LARGE]).constraints(*names) == constraints


def test_as_a_table_of_tables():
    found = Policies({"default": Policy(min_tier=2), "gpt-*": Policy(privacy="restricted")})
    assert found.constraints("m") == Constraints(min_tier=2)
    assert found.constraints("gpt-4") == Constraints(restricted=True, min_tier=2)
    found = Policies({"house": Policy(model_pattern="*", privacy="restricted")})
    assert found.constraints("m") == Constraints(restricted=True), (
        "what is written holds, not the table's name"
    )
    assert Policies([Policy(min_tier=2)]).constraints("m") == Constraints(min_tier=2)
    assert not Policies([]).rules
