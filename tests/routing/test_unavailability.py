"""Why no backend can serve: the fault, and the reason of each backend, from tables."""

import json

import msgspec
import pytest

from nexus.config.routing_records import Policy
from nexus.errors import RequestFailed
from nexus.fleet.records import Model
from nexus.fleet.status import CLEAR, EndpointStatus
from nexus.routing.needs import Requirements
from nexus.routing.policies import Constraints
from tests.routing.test_router import OPEN, backend, pick, table

BUSY = EndpointStatus(busy_s=2.0)
TOOLS = Requirements(tools=True)
BLIND = Model(name="m", tools=False)
RESTRICTED = Constraints(restricted=True)
CLOUD = {"zone": "open"}
FALLBACK = {"fallbacks": {"m": ["f"]}}
RESTRICTED_M = {"policies": [Policy(model_pattern="m", privacy="restricted")], **FALLBACK}


def fleet(*backends):
    """Backends in columns of their own."""
    return [
        backend(name, *models, column=column, **fields)
        for column, (name, models, fields) in enumerate(backends)
    ]


A, B = ("a", ("m",), {}), ("b", ("m",), {})
A_BLIND, B_CLOUD = ("a", (BLIND,), {}), ("b", ("m",), CLOUD)
BOTH = fleet(A, B)


@pytest.mark.parametrize(
    ("backends", "routing", "query", "statuses", "fault", "reasons"),
    [
        # Health comes before all else; a backend without the model is told apart.
        (
            fleet(("a", ("m",), {"status": "unhealthy"}), ("b", ("x",), {})),
            {},
            {},
            (),
            "no_healthy_backend",
            ["unhealthy", "model_not_found"],
        ),
        (
            fleet(("a", (), {"status": "unknown"}), ("b", ("x",), {})),
            {},
            {},
            (),
            "no_healthy_backend",
            ["unknown", "model_not_found"],
        ),
        # Capability is reported before policy.
        (
            fleet(("a", (BLIND,), CLOUD), B_CLOUD),
            {},
            {"needs": TOOLS, "constraints": RESTRICTED},
            (),
            "routing_rejected",
            ["capability_mismatch", "privacy_restricted"],
        ),
        # One that is allowed and not able makes it a mismatch, whatever policies do to others.
        (
            fleet(A_BLIND, B_CLOUD),
            {},
            {"needs": TOOLS, "constraints": RESTRICTED},
            (),
            "capability_mismatch",
            None,
        ),
        # None is allowed, and none is able: a mismatch.
        (
            fleet(("a", (BLIND,), CLOUD)),
            {},
            {"needs": TOOLS, "constraints": RESTRICTED},
            (),
            "capability_mismatch",
            None,
        ),
        (
            fleet(B_CLOUD),
            {},
            {"constraints": RESTRICTED},
            (),
            "routing_rejected",
            ["privacy_restricted"],
        ),
        (
            fleet(A),
            {},
            {"constraints": Constraints(min_tier=3)},
            (),
            "routing_rejected",
            ["tier_below_minimum"],
        ),
        (
            fleet(("a", ("m",), {"zone": "open", "tier": 1})),
            {},
            {"constraints": Constraints(True, 3), "flexible": True},
            (),
            "routing_rejected",
            ["privacy_restricted"],
        ),
        # What holds at this moment comes last.
        (BOTH, {}, {}, (BUSY, OPEN), "at_capacity", ["busy", "circuit_open"]),
        (
            BOTH,
            {},
            {"tried": {("x", "m")}},
            (OPEN, OPEN),
            "no_healthy_backend",
            ["circuit_open"] * 2,
        ),
        (
            fleet(("a", ("m",), {"max_concurrent": 1}), B_CLOUD),
            {},
            {"constraints": RESTRICTED, "load": lambda _: 1},
            (),
            "at_capacity",
            ["at_capacity", "privacy_restricted"],
        ),
        (
            fleet(("a", ("m",), {"max_concurrent": 9}), ("b", ("x",), {})),
            {},
            {"waited_for": lambda _: True},
            (),
            "at_capacity",
            ["at_capacity", "model_not_found"],
        ),
        # Over a chain, the candidate that gets furthest decides what is reported of a backend.
        (
            fleet(("a", (BLIND, "f"), {})),
            FALLBACK,
            {"needs": TOOLS},
            (BUSY,),
            "at_capacity",
            ["busy"],
        ),
        (
            fleet(("a", ("m", "f"), {"max_concurrent": 1, **CLOUD})),
            RESTRICTED_M,
            {"load": lambda _: 1},
            (),
            "at_capacity",
            ["at_capacity"],
        ),
        (
            fleet(("a", ("m", Model(name="f", tools=False)), CLOUD)),
            RESTRICTED_M,
            {"needs": TOOLS, "constraints": RESTRICTED},
            (),
            "routing_rejected",
            ["privacy_restricted"],
        ),
        (fleet(("a", ("x",), {})), FALLBACK, {}, (), "fallback_exhausted", None),
    ],
)
def test_fault_and_reasons(backends, routing, query, statuses, fault, reasons):
    status = lambda column, _: statuses[column] if statuses else CLEAR  # noqa: E731
    with pytest.raises(RequestFailed) as failed:
        pick(table(*backends, **routing), "m", status=status, **query)
    assert failed.value.fault.code == fault
    details = failed.value.headers.get("x-nexus-rejection-details")
    told = details and [entry["reason"] for entry in json.loads(details)]
    assert told == reasons
    if reasons:
        listed = failed.value.headers["x-nexus-rejection-reasons"]
        assert listed == ",".join(sorted(set(reasons)))


def test_a_draining_backend_is_reported():
    draining = msgspec.structs.replace(BOTH[0], draining=True)
    with pytest.raises(RequestFailed) as failed:
        pick(table(draining), "m")
    assert failed.value.headers["x-nexus-rejection-reasons"] == "draining"
