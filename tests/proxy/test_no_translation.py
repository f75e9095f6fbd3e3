"""What the client of a request without a translation gets while no other backend can serve it."""

import json
from contextlib import closing

import pytest

from tests.access.limited import WAYS, open_stream
from tests.server.asking import GOOD, Counting, ask, series
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

CONFIG = "[queue]\nmax_size = 0\n[circuit_breaker]\nenabled = false\n"
ASKED = json.dumps(GOOD | {"mcp_servers": []}).encode()


def refusal(gateway: Gateway) -> tuple[int, str]:
    reply = ask(gateway, "/v1/messages", body=ASKED)
    return reply.status, json.loads(reply.content)["error"]["code"]


@pytest.mark.parametrize("way", WAYS)
def test_the_failure_is_that_of_the_backend_that_needs_none(tmp_path, way):
    with (
        Demo(tmp_path, name="chat", pace=0) as chat,
        Demo(tmp_path, name="native", models=["demo-small", "own"]) as native,
    ):
        config = backend_toml(chat, dialects=["openai"]) + backend_toml(native, max_concurrent=1)
        with Gateway(tmp_path, config + CONFIG, environ=WAYS[way]) as gateway:
            with closing(open_stream(gateway, "", model="own")) as stream:
                stream.recv(1)
                assert refusal(gateway) == (503, "at_capacity")
            gateway.settled()
            native.fault("status=500")
            labels = {"model": "demo_small", "backend": "native", "status": "500"}
            expected = {
                series("nexus_requests_started_total", endpoint="messages"): 1,
                series("nexus_requests_total", **labels): 1,
                series("nexus_errors_total", error_type="backend_error", model="demo_small"): 1,
            }
            with Counting(gateway, expected):
                assert refusal(gateway) == (500, "demo_fault")
            retries = gateway.scrape().series("nexus_retries_total", "backend", "error_type")
            assert retries == {("native", "backend_error"): 2, ("chat", "invalid_request"): 1}
            native.stop()
            assert until(lambda: refusal(gateway) == (503, "no_healthy_backend"))


def test_a_failure_counts_for_the_backend_that_failed(tmp_path):
    """Not for the one that was tried after it, and got nothing."""
    with (
        Demo(tmp_path, name="chat", pace=0) as chat,
        Demo(tmp_path, name="native", pace=0) as native,
    ):
        config = backend_toml(chat, dialects=["openai"], priority=99) + backend_toml(native)
        with Gateway(tmp_path, config + CONFIG) as gateway:
            native.fault("status=429,retry_after=60")
            assert refusal(gateway)[0] == 429
            counts = gateway.settled()
            assert counts.series("nexus_requests_total", "backend") == {("native",): 1}
            retries = counts.series("nexus_retries_total", "backend", "error_type")
            assert retries == {("native", "rate_limited"): 1}
