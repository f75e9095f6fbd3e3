"""Images and speech with OpenAI's own client: over the fast path and through Flask."""

import hashlib
import http.client
import json
from collections.abc import Iterator

import openai
import pytest

from nexus_demo import media
from tests.support.metrics import moved
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
TEXT = "five words for a voice"
SPOKEN = b"".join(media.speech({"input": TEXT}))
SPEECH = {"model": "voice", "voice": "alloy", "input": TEXT}
FAMILIES = (
    "nexus_requests_started_total",
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_tokens_total_sum",
    "nexus_units_total",
    "nexus_stream_ends_total",
    "nexus_upstream_attempts_total",
    "nexus_time_to_first_token_seconds_count",
)


class Fleet:
    def __init__(self, gateway: Gateway, demo: Demo) -> None:
        self.gateway, self.demo = gateway, demo
        self.client = openai.OpenAI(base_url=f"{gateway.base}/v1", api_key="unused", max_retries=0)
        self._before = gateway.settled()

    def moves(self) -> dict[str, float]:
        """What has moved since the last call, by family and label values."""
        before, self._before = self._before, self.gateway.settled()
        return {
            f"{name} {' '.join(value for _, value in sorted(labels))}".strip(): change
            for (name, labels), change in moved(before, self._before, FAMILIES).items()
        }


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def running(request, tmp_path_factory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("media")
    with Demo(directory, models=["voice", "painter"], pace=50) as demo:
        config = (
            backend_toml(demo)
            + '[[backends.models]]\nname = "voice"\ntasks = ["speech"]\n'
            + '[[backends.models]]\nname = "painter"\ntasks = ["images"]\n'
            + '[circuit_breaker]\nenabled = false\n[endpoints.default_models]\nimages = "painter"\n'
            + "[routing]\nmax_retries = 0\n"
        )
        with Gateway(directory, config, environ=request.param) as gateway:
            fleet = Fleet(gateway, demo)
            with fleet.client:
                yield fleet


@pytest.fixture
def fleet(running: Fleet) -> Iterator[Fleet]:
    running.moves()
    yield running
    running.demo.fault("")


def test_images(fleet):
    images = fleet.client.images.generate(prompt="a dark pixel", n=3)
    assert len(images.data) == 3
    assert fleet.moves() == {
        "nexus_requests_started_total images": 1,
        "nexus_requests_total demo painter 200": 1,
        "nexus_upstream_attempts_total demo ok": 1,
        "nexus_tokens_total_sum demo painter prompt": images.usage.input_tokens,
        "nexus_tokens_total_sum demo painter completion": 30,
        "nexus_units_total images images": 3,
    }


def test_a_stream_of_images(fleet):
    stream = fleet.client.images.generate(
        model="painter", prompt="a dark pixel", stream=True, partial_images=2
    )
    kinds = [event.type for event in stream]
    assert kinds == 2 * ["image_generation.partial_image"] + ["image_generation.completed"]
    moves = fleet.moves()
    assert moves.pop("nexus_tokens_total_sum demo painter prompt") > 0
    assert moves == {
        "nexus_requests_started_total images": 1,
        "nexus_requests_total demo painter 200": 1,
        "nexus_upstream_attempts_total demo ok": 1,
        "nexus_tokens_total_sum demo painter completion": 10,
        "nexus_units_total images images": 1,
        "nexus_stream_ends_total demo complete": 1,
        "nexus_time_to_first_token_seconds_count demo painter": 1,
    }


def test_speech_passes_piece_by_piece(fleet):
    with fleet.client.audio.speech.with_streaming_response.create(**SPEECH) as response:
        assert response.headers["content-type"] == "audio/mpeg"
        pieces = list(response.iter_bytes(400))
    assert hashlib.sha256(b"".join(pieces)).digest() == hashlib.sha256(SPOKEN).digest()
    assert fleet.moves() == {
        "nexus_requests_started_total speech": 1,
        "nexus_requests_total demo voice 200": 1,
        "nexus_upstream_attempts_total demo ok": 1,
        "nexus_units_total speech characters": len(TEXT),
        "nexus_stream_ends_total demo complete": 1,
        "nexus_time_to_first_token_seconds_count demo voice": 1,
    }


def test_speech_of_nothing_is_a_whole_response_without_bytes(fleet):
    """Not a lost connection, which would count against the backend."""
    with fleet.client.audio.speech.with_streaming_response.create(
        **SPEECH | {"input": ""}
    ) as response:
        assert b"".join(response.iter_bytes()) == b""
    assert fleet.moves() == {
        "nexus_requests_started_total speech": 1,
        "nexus_requests_total demo voice 200": 1,
        "nexus_stream_ends_total demo complete": 1,
        "nexus_upstream_attempts_total demo ok": 1,
        "nexus_time_to_first_token_seconds_count demo voice": 1,
    }


def test_speech_as_events(fleet):
    with fleet.client.audio.speech.with_streaming_response.create(
        **SPEECH, stream_format="sse"
    ) as response:
        text = response.read().decode()
    assert text.count("event: speech.audio.delta\n") == 5
    moves = fleet.moves()
    assert moves["nexus_tokens_total_sum demo voice completion"] == 20
    assert moves["nexus_units_total speech characters"] == len(TEXT)
    assert moves["nexus_stream_ends_total demo complete"] == 1


def test_speech_that_breaks_off_is_cut(fleet):
    """The client's connection closes without the end of the response: it sees that it is not
    whole, and no error is among the bytes."""
    fleet.demo.fault("break_after=3")
    connection = http.client.HTTPConnection("127.0.0.1", fleet.gateway.port, timeout=10)
    body = json.dumps(SPEECH)
    connection.request("POST", "/v1/audio/speech", body, {"content-type": "application/json"})
    with pytest.raises(http.client.IncompleteRead) as caught:
        connection.getresponse().read()
    connection.close()
    assert SPOKEN.startswith(caught.value.partial)
    assert fleet.moves() == {
        "nexus_requests_started_total speech": 1,
        "nexus_requests_total demo voice 502": 1,
        "nexus_errors_total stream_interrupted voice": 1,
        "nexus_upstream_attempts_total demo stream_interrupted": 1,
        "nexus_units_total speech characters": len(TEXT),
        "nexus_stream_ends_total demo upstream_reset": 1,
        "nexus_time_to_first_token_seconds_count demo voice": 1,
    }


def test_errors_and_tasks(fleet):
    fleet.demo.fault("status=400,message=no such voice")
    with pytest.raises(openai.BadRequestError) as caught:
        fleet.client.audio.speech.create(**SPEECH)
    assert caught.value.body["message"] == "no such voice"
    fleet.moves()
    with pytest.raises(openai.BadRequestError) as caught:
        fleet.client.audio.speech.create(**SPEECH | {"model": "painter"})
    assert caught.value.code == "capability_mismatch"
    assert fleet.moves()["nexus_errors_total capability_mismatch painter"] == 1
