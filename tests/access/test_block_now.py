"""`nexus keys block --now` ends the requests in progress of one key."""

import json
import threading
from collections.abc import Iterator

import pytest

from nexus.metrics.labels import sanitize
from tests.access.test_gateway import WAYS
from tests.access.test_run_time_keys import codes, keys
from tests.server.asking import CHAT, GOOD, Reply, ask
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

FAMILIES = (
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_stream_ends_total",
    "nexus_key_requests_total",
    "nexus_upstream_attempts_total",
)
ACCESS = '[auth]\nmode = "keys"\n'


@pytest.fixture(scope="module")
def demo(module_dir) -> Iterator[Demo]:
    with Demo(module_dir, name="demo", models=["demo-small"], pace=20, length=5000) as demo:
        yield demo


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory, demo) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("ends")
    server = f'state_dir = "{directory}/state"'
    config, environ = ACCESS + backend_toml(demo), WAYS[request.param]
    with Gateway(directory, config, workers=2, server=server, environ=environ) as gateway:
        yield gateway


class Asking(threading.Thread):
    """A request, and what came of it."""

    def __init__(
        self, gateway: Gateway, key: str, *, stream: bool, path: str = CHAT, **headers: str
    ) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._body = json.dumps({**GOOD, "max_tokens": 5000, "stream": stream}).encode()
        self._gateway, self._headers = gateway, {"authorization": f"Bearer {key}", **headers}
        self.reply: Reply
        self.start()

    def run(self) -> None:
        self.reply = ask(self._gateway, self._path, body=self._body, **self._headers)

    def ended(self) -> Reply:
        self.join(20)
        assert not self.is_alive()
        return self.reply


def test_streams_and_waiting_requests_of_the_key_end_and_others_go_on(gateway, demo):
    bad, good = keys(gateway, "add"), keys(gateway, "add")
    until(lambda: demo.tally()["open"] == 0)
    before = gateway.settled()
    streams = [Asking(gateway, bad["key"], stream=True) for _ in range(4)]
    waiting = [Asking(gateway, bad["key"], stream=False, x_demo_fault="hang") for _ in range(2)]
    others = [Asking(gateway, good["key"], stream=True) for _ in range(2)]
    until(lambda: gateway.scrape().value("nexus_streams_active") == 6)
    until(lambda: demo.tally()["open"] == 8)

    assert keys(gateway, "block", bad["id"], "--now")["state"] == "blocked"
    for stream in streams:
        reply = stream.ended()
        last = reply.content.strip().split(b"\n\n")[-1].removeprefix(b"data: ")
        error = json.loads(last)["error"]
        assert (reply.status, error["code"]) == (200, "stream_key_blocked")
        assert error["message"] == f"The key {bad['id']} was blocked while it was used."
    for request in waiting:
        reply = request.ended()
        assert (reply.status, reply.code) == (401, "key_blocked")
        assert reply.headers["x-should-retry"] == "false"
    assert all(other.is_alive() for other in others)
    until(lambda: demo.tally()["open"] == 2)
    assert codes(gateway, bad["key"], times=2) == {"key_blocked"}
    demo.hurry()
    assert all(other.ended().content.endswith(b"data: [DONE]\n\n") for other in others)

    assert keys(gateway, "unblock", bad["id"])["state"] == "active"
    stream = Asking(gateway, bad["key"], stream=True)
    until(lambda: demo.tally()["open"] == 1)
    demo.hurry()
    assert stream.ended().content.endswith(b"data: [DONE]\n\n")
    changes = {
        f"{name} {' '.join(value for _, value in sorted(labels))}": change
        for (name, labels), change in moved(before, gateway.settled(), FAMILIES).items()
    }
    assert changes == {
        "nexus_requests_total demo demo_small 200": 3,
        "nexus_requests_total demo demo_small 401": 2,
        "nexus_requests_total demo demo_small 502": 4,
        "nexus_requests_total none unknown 401": 2,
        "nexus_errors_total unauthorized demo_small": 2,
        "nexus_errors_total stream_interrupted demo_small": 4,
        "nexus_errors_total unauthorized unknown": 2,
        "nexus_stream_ends_total demo key_blocked": 4,
        "nexus_stream_ends_total demo complete": 3,
        f"nexus_key_requests_total {sanitize(bad['id'])} 401 none": 4,
        f"nexus_key_requests_total {sanitize(bad['id'])} 502 none": 4,
        f"nexus_key_requests_total {sanitize(bad['id'])} 200 none": 1,
        f"nexus_key_requests_total {sanitize(good['id'])} 200 none": 2,
        "nexus_upstream_attempts_total demo ok": 3,
        "nexus_upstream_attempts_total demo unauthorized": 2,
        "nexus_upstream_attempts_total demo stream_interrupted": 4,
    }
    assert gateway.scrape().value("nexus_streams_active") == 0


def test_an_error_in_a_stream_of_messages_has_the_id_of_its_request(gateway, demo):
    key = keys(gateway, "add")
    stream = Asking(gateway, key["key"], stream=True, path="/v1/messages", x_request_id="the-id")
    until(lambda: gateway.scrape().value("nexus_streams_active") == 1)
    keys(gateway, "block", key["id"], "--now")
    name, _, data = stream.ended().content.strip().split(b"\n\n")[-1].partition(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: ")) == {
        "type": "error",
        "error": {
            "type": "api_error",
            "message": f"The key {key['id']} was blocked while it was used.",
            "code": "stream_key_blocked",
        },
        "request_id": "the-id",
    }
