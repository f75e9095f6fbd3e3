"""Where requests may go: privacy and tiers hold whatever fails, and a refusal says why."""

import http.client
import json
from pathlib import Path

import pytest

from tests.support.load import chat
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

CONFIG = """
[routing]
strategy = "priority_only"
[routing.aliases]
"secret-alias" = "private"
[routing.fallbacks]
private = ["spare"]
[[routing.policies]]
model_pattern = "priv*"
privacy = "restricted"
[[routing.policies]]
model_pattern = "large"
min_tier = 3
[circuit_breaker]
enabled = false  # each fault is to be met, not only the first ones
[queue]
max_wait_seconds = 0.2
"""
MODELS = ["private", "spare", "large"]


@pytest.fixture(scope="module")
def fleet(module_dir: Path):
    with (
        Demo(module_dir, name="house", models=["private", "large"], pace=0) as house,
        Demo(module_dir, name="cloud", models=MODELS, pace=0) as cloud,
        Gateway(
            module_dir,
            backend_toml(
                house, zone="restricted", tier=2, priority=9, first_byte_timeout_seconds=0.3
            )
            + backend_toml(cloud, zone="open", tier=2, priority=1)
            + CONFIG,
        ) as gateway,
    ):
        yield gateway, house, cloud


def ask(gateway: Gateway, model: str, **headers: str) -> tuple[int, dict[str, str], dict]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    given = {
        "content-type": "application/json",
        **{f"x-nexus-{name}": value for name, value in headers.items()},
    }
    connection.request("POST", "/v1/chat/completions", json.dumps(chat("x", model).body), given)
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


@pytest.mark.parametrize("model", ["private", "secret-alias"])
def test_restricted_models_stay_in_the_house(fleet, model):
    gateway, _, _ = fleet
    status, headers, _ = ask(gateway, model)
    assert status == 200
    assert (headers["x-nexus-backend"], headers["x-nexus-privacy-zone"]) == ("house", "restricted")
    assert headers["x-nexus-route-reason"] == "privacy-requirement"


@pytest.mark.parametrize(
    ("fault", "status"),
    [("status=500", 502), ("close", 502), ("malformed", 502), ("hang", 504), ("status=401", 401),
     ("status=429,retry_after=1", 429)],
)  # fmt: skip
@pytest.mark.parametrize("flexible", ["false", "true"])
def test_they_never_leave_it_whatever_fails(fleet, fault, status, flexible):
    """Neither a retry, nor the fallback, nor a client's header takes them to the open backend."""
    gateway, house, cloud = fleet
    until(lambda: ask(gateway, "private")[0] == 200)  # it is busy no longer
    reached, tried = (sum(demo.tally()["requests"].values()) for demo in (cloud, house))
    house.fault(fault)
    assert ask(gateway, "private", flexible=flexible)[0] == status
    house.fault("")
    assert sum(cloud.tally()["requests"].values()) == reached
    assert sum(house.tally()["requests"].values()) > tried


def test_rejection_says_why(fleet):
    gateway, _, _ = fleet
    before = gateway.settled()
    status, headers, content = ask(gateway, "large")
    assert status == 503
    assert content["error"]["code"] == "routing_rejected"
    assert content["context"] == {
        "required_tier": 3,
        "available_backends": ["house", "cloud"],
        "eta_seconds": 5,
        "privacy_zone_required": None,
    }
    assert headers["x-nexus-rejection-reasons"] == "tier_below_minimum"
    assert json.loads(headers["x-nexus-rejection-details"]) == [
        {"backend": "house", "reason": "tier_below_minimum"},
        {"backend": "cloud", "reason": "tier_below_minimum"},
    ]
    assert headers["retry-after"] == "5"
    assert {
        key[0]: value
        for key, value in moved(before, gateway.settled(), ("nexus_errors_total",)).items()
    } == {"nexus_errors_total": 1}
    assert (
        gateway.scrape().value("nexus_errors_total", model="large", error_type="routing_rejected")
        == 1
    )


def test_a_flexible_client_takes_a_lower_tier(fleet):
    gateway, _, _ = fleet
    status, headers, _ = ask(gateway, "large", flexible="true")
    assert (status, headers["x-nexus-backend"]) == (200, "cloud")
    assert ask(gateway, "large", flexible="true", strict="true")[0] == 503, "strict wins"
    assert ask(gateway, "large", flexible="false")[0] == 503
