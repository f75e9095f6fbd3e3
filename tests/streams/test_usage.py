"""Asking a backend for the usage of a stream, and what becomes of one that refuses."""

import json
import socket
import time

import pytest

from tests.corpus import RECORDINGS
from tests.streams.exact import CONFIG, flat, stream
from tests.support.metrics import moved
from tests.support.processes import backend
from tests.support.replay import in_packets, whole

pytestmark = pytest.mark.e2e


def test_a_client_that_asks_for_the_usage_sees_it(gateway, replay):
    recording = RECORDINGS[0]
    replay.scripts["r0"] = in_packets(recording.data, 50)
    before = gateway.settled()
    assert stream(gateway, "r0", stream_options={"include_usage": True}) == (200, recording.data)
    assert flat(before, gateway.settled())["usage_total{reported}"] == 1


def test_a_backend_that_refuses_the_usage_option(gateway, replay):
    """It is asked as the client asked, once more, and from then on at once; a bad request is
    still the client's."""
    gateway.publish(CONFIG, [backend("shy", replay.url, "refuses", "learn")])
    recording = RECORDINGS[1]
    good = in_packets(recording.data, 10_000)
    refusal = whole(422, {"error": {"message": "stream_options: extra fields not permitted"}})
    replay.scripts["refuses"] = lambda body, sock: (refusal if "stream_options" in body else good)(
        body, sock
    )
    replay.scripts["learn"] = whole(400, {"error": {"message": "bad"}})
    replay.asked.clear()
    attempts = ("nexus_upstream_attempts_total", "nexus_retries_total")
    before = gateway.settled()
    assert stream(gateway, "learn")[0] == 400
    assert ["stream_options" in body for body in replay.asked] == [True, False]
    assert stream(gateway, "refuses") == (200, recording.data)
    assert stream(gateway, "refuses") == (200, recording.data)
    assert ["stream_options" in body for body in replay.asked] == [True, False, True, False, False]
    changes = {key[0]: 0.0 for key in moved(before, gateway.settled(), attempts)}
    for key, change in moved(before, gateway.settled(), attempts).items():
        changes[key[0]] += change
    assert changes == {"nexus_upstream_attempts_total": 5, "nexus_retries_total": 2}, (
        "as many as it was asked"
    )


def test_a_backend_that_comes_to_refuse_the_usage_option(gateway, replay):
    """Another server may stand at its address by now; a client's own mistake is still told at
    once."""
    gateway.publish(CONFIG, [backend("new", replay.url, "refuses", "learn")])
    good = in_packets(RECORDINGS[1].data, 10_000)
    refusal = whole(400, {"error": {"message": "stream_options: extra fields not permitted"}})
    replay.asked.clear()
    replay.scripts["refuses"] = good
    assert stream(gateway, "refuses")[0] == 200
    replay.scripts["learn"] = whole(400, {"error": {"message": "bad"}})
    status, content = stream(gateway, "learn")
    assert (status, json.loads(content)["error"]["message"]) == (400, "bad")
    replay.scripts["refuses"] = lambda body, sock: (refusal if "stream_options" in body else good)(
        body, sock
    )
    assert stream(gateway, "refuses") == (200, RECORDINGS[1].data)
    assert stream(gateway, "refuses") == (200, RECORDINGS[1].data)
    assert ["stream_options" in body for body in replay.asked] == [True, True, True, False, False]


def test_a_refusal_of_the_usage_option_is_no_time_of_the_gateways(gateway, replay):
    gateway.publish(CONFIG, [backend("coy", replay.url, "refuses")])
    good = in_packets(RECORDINGS[1].data, 10_000)
    refusal = whole(400, {"error": {"message": "stream_options: extra fields not permitted"}})

    pause_s = 0.3

    def answer(body, sock: socket.socket) -> None:
        time.sleep(pause_s)
        (refusal if "stream_options" in body else good)(body, sock)

    replay.scripts["refuses"] = answer
    before, started = gateway.settled(), time.monotonic()
    assert stream(gateway, "refuses")[0] == 200
    took_s = time.monotonic() - started
    overhead = "nexus_gateway_overhead_seconds_sum"
    assert (
        0
        < gateway.settled().value(overhead, phase="before") - before.value(overhead, phase="before")
        < took_s - 2 * pause_s
    )
