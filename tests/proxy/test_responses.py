"""`/v1/responses` with OpenAI's own client: over the fast path and through Flask."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests

from tests.server.asking import JSON, ask
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
PATH = "/v1/responses"
ASKED = {"model": "shared", "max_output_tokens": 4, "input": "hi"}
BODY = json.dumps(ASKED).encode()
FAMILIES = (
    "nexus_requests_started_total",
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_tokens_total_sum",
    "nexus_stream_ends_total",
    "nexus_stream_events_total",
    "nexus_upstream_attempts_total",
    "nexus_sticky_total",
    "nexus_usage_total",
    "nexus_dialect_requests_total",
)


class Fleet:
    """A gateway of four workers before three backends that store responses (`one` is preferred),
    and `plain`, which speaks only OpenAI's chat API."""

    def __init__(self, gateway: Gateway, demos: dict[str, Demo]) -> None:
        self.gateway, self.demos, self.base = gateway, demos, gateway.base
        self.client = openai.OpenAI(base_url=f"{self.base}/v1", api_key="unused", max_retries=0)
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
    directory = tmp_path_factory.mktemp("responses")
    with (
        Demo(directory, name="one", models=["shared", "one-only"], pace=60) as one,
        Demo(directory, name="two", models=["shared"], pace=0) as two,
        Demo(directory, name="three", models=["shared"], pace=0) as three,
        Demo(directory, name="plain", models=["shared", "plain-only"], pace=0) as plain,
    ):
        config = (
            backend_toml(one, priority=1)
            + backend_toml(two, three, priority=2)
            + backend_toml(plain, priority=3, dialects=["openai"], translate=False)
            + "[circuit_breaker]\nenabled = false\n"
            + '[routing]\nstrategy = "priority_only"\nmax_retries = 1\n'
        )
        with Gateway(directory, config, workers=4, environ=request.param) as gateway:
            demos = {demo.name: demo for demo in (one, two, three, plain)}
            fleet = Fleet(gateway, demos)
            with fleet.client:
                yield fleet


@pytest.fixture
def fleet(running: Fleet) -> Iterator[Fleet]:
    running.moves()
    yield running
    for demo in running.demos.values():
        with contextlib.suppress(OSError):  # a test stops one
            demo.fault("")


def one_is_first(fleet: Fleet) -> None:
    """Wait until the next request goes to `one`, which counts as busy for a while after some
    errors."""
    until(
        lambda: (
            ask(fleet.gateway, PATH, body=BODY, headers=JSON).headers["x-nexus-backend"] == "one"
        )
    )
    fleet.moves()


def test_a_whole_response_is_what_the_backend_said(fleet):
    response = fleet.client.responses.create(**ASKED, instructions="Be kind.")
    assert (response.status, response.usage.output_tokens) == ("incomplete", 4)
    assert len(response.output_text.split()) == 4
    assert json.loads(fleet.demos["one"].last()["body"]) == ASKED | {"instructions": "Be kind."}
    assert fleet.moves() == {
        "nexus_requests_started_total responses": 1,
        "nexus_requests_total one shared 200": 1,
        "nexus_upstream_attempts_total one ok": 1,
        "nexus_dialect_requests_total responses native": 1,
        "nexus_tokens_total_sum one shared prompt": response.usage.input_tokens,
        "nexus_tokens_total_sum one shared completion": 4,
        "nexus_usage_total reported": 1,
    }


def test_a_stream_is_what_the_backend_said(fleet):
    with fleet.client.responses.stream(**ASKED) as stream:
        events = list(stream)
    kinds, response = [event.type for event in events], events[-1].response
    assert (kinds[0], kinds[-1]) == ("response.created", "response.incomplete")
    assert kinds.count("response.output_text.delta") == 4
    assert fleet.moves() == {
        "nexus_requests_started_total responses": 1,
        "nexus_requests_total one shared 200": 1,
        "nexus_upstream_attempts_total one ok": 1,
        "nexus_dialect_requests_total responses native": 1,
        "nexus_tokens_total_sum one shared prompt": response.usage.input_tokens,
        "nexus_tokens_total_sum one shared completion": 4,
        "nexus_usage_total reported": 1,
        "nexus_stream_ends_total one complete": 1,
        "nexus_stream_events_total one shared": 12,
    }


def test_bytes_reach_the_backend_untouched(fleet):
    body = (
        b' {"input" : "\\u00e9","model":"shared","tools":[{"type":"custom","name":"x"}],"y":1.50 } '
    )
    assert ask(fleet.gateway, f"{PATH}?a=b", body=body, headers=JSON).status == 200
    last = fleet.demos["one"].last()
    assert (last["target"], last["body"].encode()) == (f"{PATH}?a=b", body)


def test_an_asynchronous_client(fleet):
    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{fleet.base}/v1", api_key="unused") as client:
            whole = await client.responses.create(**ASKED)
            async with client.responses.stream(**ASKED) as stream:
                text = "".join(
                    [event.delta async for event in stream if event.type.endswith("text.delta")]
                )
            return whole.output_text, text

    whole, text = asyncio.run(both())
    assert len(whole.split()) == len(text.split()) == 4


def test_a_stored_response_is_where_it_was_made(fleet):
    fleet.demos["one"].fault("status=429")
    made = fleet.client.responses.create(**ASKED)  # by another backend than the preferred one
    fleet.demos["one"].fault("")
    one_is_first(fleet)
    got = fleet.client.responses.with_raw_response.retrieve(made.id)
    assert got.headers["x-nexus-backend"] in ("two", "three")
    assert got.parse().output_text == made.output_text
    home = got.headers["x-nexus-backend"]
    items = fleet.client.responses.input_items.list(made.id)
    assert items.data[0].content[0].text == "hi"
    assert fleet.client.responses.cancel(made.id).id == made.id
    fleet.client.responses.delete(made.id)
    assert fleet.demos[home].last()["target"] == f"{PATH}/{made.id}"
    with pytest.raises(openai.NotFoundError) as caught:
        fleet.client.responses.retrieve(made.id)
    assert "not found" in caught.value.body["message"]
    assert fleet.moves() == {
        "nexus_requests_started_total responses": 5,
        f"nexus_requests_total {home} unknown 200": 4,
        f"nexus_requests_total {home} unknown 404": 1,
        "nexus_errors_total invalid_request unknown": 1,
        f"nexus_upstream_attempts_total {home} ok": 4,
        "nexus_dialect_requests_total responses native": 5,
        f"nexus_upstream_attempts_total {home} invalid_request": 1,
        "nexus_sticky_total hit": 5,
    }


def test_an_unknown_id_is_asked_of_each_backend(fleet):
    made = requests.post(f"{fleet.demos['three'].url}{PATH}", json=ASKED, timeout=10).json()
    assert fleet.client.responses.retrieve(made["id"]).id == made["id"]
    moves = fleet.moves()
    assert moves["nexus_sticky_total unknown"] == 1
    assert moves["nexus_requests_total three unknown 200"] == 1
    assert fleet.client.responses.retrieve(made["id"]).id == made["id"]
    assert fleet.moves()["nexus_sticky_total hit"] == 1
    with pytest.raises(openai.NotFoundError):
        fleet.client.responses.retrieve("resp_nobody")
    moves = fleet.moves()
    attempts = {name: n for name, n in moves.items() if name.startswith("nexus_upstream")}
    assert attempts == {
        f"nexus_upstream_attempts_total {name} invalid_request": 1
        for name in ("one", "two", "three")
    }


def test_an_unknown_previous_response_is_the_backends_to_refuse(fleet):
    with pytest.raises(openai.NotFoundError) as caught:
        fleet.client.responses.create(**ASKED, previous_response_id="resp_nobody")
    assert "resp_nobody" in caught.value.body["message"]
    assert fleet.moves()["nexus_sticky_total unknown"] == 1


def made_at(fleet: Fleet, name: str) -> str:
    """The id of a response that this backend stores, and the gateway knows that."""
    made = requests.post(f"{fleet.demos[name].url}{PATH}", json=ASKED, timeout=10).json()["id"]
    raw = fleet.client.responses.with_raw_response.retrieve(made)
    assert raw.headers["x-nexus-backend"] == name
    return made


def test_chains_stay_at_their_backends(fleet):
    """Over all workers, and though another backend is preferred."""

    def chain(nth: int) -> set[str]:
        home = ("one", "two", "three")[nth % 3]
        homes, previous = {home}, made_at(fleet, home)
        for turn in range(4):
            asked = ASKED | {"previous_response_id": previous, "stream": (nth + turn) % 2 == 0}
            reply = requests.post(fleet.base + PATH, json=asked, timeout=10)
            homes.add(reply.headers["x-nexus-backend"])
            last = reply.text.strip().splitlines()[-1].removeprefix("data: ")
            previous = json.loads(last).get("response", json.loads(last))["id"]
        return homes

    with ThreadPoolExecutor(8) as pool:
        homes = list(pool.map(chain, range(50)))
    assert [len(one) for one in homes] == 50 * [1]
    moves = fleet.moves()
    assert (moves["nexus_sticky_total hit"], moves["nexus_sticky_total unknown"]) == (200, 50)
    used = fleet.gateway.scrape().value("nexus_sticky_ids", state="used")
    assert used >= 250


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500])
def test_errors_of_the_backend_come_back_as_they_were(fleet, status):
    for name in ("one", "two", "three"):
        fleet.demos[name].fault(f"status={status},message=odd words")
    direct = requests.post(fleet.demos["two"].url + PATH, json=ASKED, timeout=10)
    reply = ask(fleet.gateway, PATH, body=BODY, headers=JSON)
    assert (reply.status, reply.content) == (direct.status_code, direct.content)
    counted = [name for name in fleet.moves() if name.startswith("nexus_requests_total")]
    assert [name.split()[2:] for name in counted] == [["shared", str(status)]]


@pytest.mark.parametrize(
    ("fault", "stream"),
    [("status=503", False), ("status=503", True), ("break_after=2", True), ("error_after=1", True)],
)
def test_before_content_another_backend_is_tried(fleet, fault, stream):
    one_is_first(fleet)
    fleet.demos["one"].fault(fault)
    body = json.dumps(ASKED | {"stream": stream}).encode()
    reply = ask(fleet.gateway, PATH, body=body, headers=JSON)
    assert reply.status == 200
    assert reply.content.count(b"event: response.created") == int(stream)
    assert reply.headers["x-nexus-backend"] in ("two", "three")


@pytest.mark.parametrize(
    ("fault", "code", "end"),
    [
        ("break_after=6", "stream_reset", "upstream_reset"),
        ("no_done", "stream_truncated", "upstream_truncated"),
        ("error_after=6", "server_error", "in_band_error"),
    ],
)
def test_after_content_the_client_is_told_within_the_stream(fleet, fault, code, end):
    asked = ASKED | {"model": "one-only", "stream": True}
    one_is_first(fleet)
    fleet.demos["one"].fault(fault)
    reply = ask(fleet.gateway, PATH, body=json.dumps(asked).encode(), headers=JSON)
    *_, last = reply.content.strip().split(b"\n\n")
    error = json.loads(last.removeprefix(b"event: error\ndata: "))
    assert (error["type"], error["code"]) == ("error", code)
    if code != "server_error":
        assert error["sequence_number"] == reply.content.count(b"event: response.")
        with pytest.raises(openai.APIError):
            list(fleet.client.responses.create(**asked))
    moves = fleet.moves()
    assert moves[f"nexus_stream_ends_total one {end}"] >= 1
    assert "nexus_requests_total one one_only 502" in moves


WEBSOCKET = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}
"""The head of a real handshake (RFC 6455, section 4.1)."""


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("GET", PATH, {}, 405, "method_not_allowed"),
        ("PUT", f"{PATH}/resp_1", {}, 405, "method_not_allowed"),
        ("GET", f"{PATH}/a%20b", {}, 404, "not_found"),
        ("GET", f"{PATH}/..%2Fx", {}, 404, "not_found"),
        ("GET", PATH, {"upgrade": "websocket"}, 426, "websocket_unsupported"),
        ("GET", PATH, WEBSOCKET, 426, "websocket_unsupported"),
    ],
)
def test_what_cannot_be_asked(fleet, method, path, headers, status, code):
    reply = requests.request(method, fleet.base + path, headers=headers, timeout=10)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    named = ("HTTP/1.1", "upgrade") if status == 426 else (None, "keep-alive")
    assert (reply.headers.get("upgrade"), reply.headers["connection"]) == named


def test_requests_go_only_where_their_api_is_spoken(fleet):
    reply = requests.post(fleet.base + PATH, json=ASKED | {"model": "plain-only"}, timeout=10)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "dialect_not_spoken")


def test_nobody_else_has_what_a_stopped_backend_stores(fleet):
    """The last test: it stops a backend."""
    made = made_at(fleet, "two")
    fleet.demos["two"].stop()
    fleet.moves()
    for call in (
        lambda: fleet.client.responses.create(**ASKED, previous_response_id=made),
        lambda: fleet.client.responses.retrieve(made),
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            call()
        assert caught.value.status_code == 503
        assert caught.value.code == "response_unavailable"
        assert caught.value.response.json()["context"].keys() == {
            "required_tier", "available_backends", "eta_seconds", "privacy_zone_required"
        }  # fmt: skip
    assert fleet.moves()["nexus_sticky_total hit"] == 2
