"""`/v1/messages` with Anthropic's own client: over the fast path and through Flask."""

import json
from collections.abc import Iterator

import anthropic
import pytest
import requests

from tests.server.asking import JSON, ask
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, get_json

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
ASKED = {"model": "shared", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
BODY = json.dumps(ASKED).encode()
HEADERS = {"anthropic-version": "2023-06-01", "content-type": "application/json"}
CHAT = {"model": "shared", "messages": ASKED["messages"]}
FAMILIES = (
    "nexus_requests_started_total",
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_tokens_total_sum",
    "nexus_stream_ends_total",
    "nexus_upstream_attempts_total",
    "nexus_dialect_requests_total",
)


class Fleet:
    """A gateway before three backends: `claude` speaks Anthropic's API alone, `any` both,
    `plain` OpenAI's alone."""

    def __init__(self, gateway: Gateway, claude: Demo, both: Demo, plain: Demo) -> None:
        self.gateway, self.claude, self.both, self.plain = gateway, claude, both, plain
        self.base = gateway.base
        self.client = anthropic.Anthropic(base_url=self.base, api_key="unused", max_retries=0)
        self._before = gateway.settled()

    def moves(self) -> dict[str, float]:
        """What has moved since the last call, by family and label values."""
        before, self._before = self._before, self.gateway.settled()
        return {
            f"{name} {' '.join(value for _, value in sorted(labels))}": change
            for (name, labels), change in moved(before, self._before, FAMILIES).items()
        }


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def running(request, tmp_path_factory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("messages")
    with (
        Demo(directory, name="claude", models=["shared", "claude-only"], pace=20) as claude,
        Demo(directory, name="both", models=["shared"], pace=0) as both,
        Demo(directory, name="plain", models=["shared", "plain-only"], pace=0) as plain,
    ):
        config = (
            backend_toml(
                claude,
                priority=1,
                translate=False,
                drop_fields=["context_management"],
                drop_betas=["context-*"],
            ).replace('"vllm"', '"anthropic"')
            + backend_toml(both, priority=2)
            + backend_toml(plain, priority=3, dialects=["openai"], translate=False)
            + '[circuit_breaker]\nenabled = false\n[messages]\ncount_tokens = "estimate"\n'
            + '[routing]\nstrategy = "priority_only"\nmax_retries = 1\n'
        )
        with Gateway(directory, config, environ=request.param) as gateway:
            fleet = Fleet(gateway, claude, both, plain)
            with fleet.client:
                yield fleet


def claude_is_first(fleet: Fleet) -> None:
    """Wait until the next request goes to `claude`, which counts as busy for a while after some
    errors."""
    until(
        lambda: (
            ask(fleet.gateway, PATH, body=BODY, headers=JSON).headers["x-nexus-backend"] == "claude"
        )
    )
    fleet.moves()


@pytest.fixture
def fleet(running: Fleet) -> Iterator[Fleet]:
    running.moves()
    yield running
    for demo in (running.claude, running.both, running.plain):
        demo.fault("")


def test_a_whole_message_is_what_the_backend_said(fleet):
    message = fleet.client.messages.create(**ASKED, system="Be kind.")
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 4)
    last = fleet.claude.last()
    assert "anthropic-version" in last["headers"]
    assert json.loads(last["body"]) == ASKED | {"system": "Be kind."}
    assert "x-api-key" not in last["headers"]
    assert fleet.moves() == {
        "nexus_requests_started_total messages": 1,
        "nexus_requests_total claude shared 200": 1,
        "nexus_upstream_attempts_total claude ok": 1,
        "nexus_dialect_requests_total messages native": 1,
        "nexus_tokens_total_sum claude shared prompt": message.usage.input_tokens,
        "nexus_tokens_total_sum claude shared completion": 4,
    }


def test_a_stream_is_what_the_backend_said(fleet):
    with fleet.client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert (text, message.usage.output_tokens) == (message.content[0].text, 4)
    assert fleet.moves() == {
        "nexus_requests_started_total messages": 1,
        "nexus_requests_total claude shared 200": 1,
        "nexus_upstream_attempts_total claude ok": 1,
        "nexus_dialect_requests_total messages native": 1,
        "nexus_tokens_total_sum claude shared prompt": message.usage.input_tokens,
        "nexus_tokens_total_sum claude shared completion": 4,
        "nexus_stream_ends_total claude complete": 1,
    }


def test_query_beta_headers_and_bytes_reach_the_backend(fleet):
    body = b' {"messages" : [{"role":"user","content":"\\u00e9"}],"model":"shared","x":1.50 } '
    reply = ask(
        fleet.gateway, f"{PATH}?beta=true", body=body, headers=HEADERS | {"anthropic-beta": "a,b"}
    )
    assert reply.status == 200
    last = fleet.claude.last()
    assert (last["target"], last["body"].encode()) == (f"{PATH}?beta=true", body)
    assert last["headers"]["anthropic-beta"] == "a,b"


def test_fields_and_betas_that_a_backend_does_not_get(fleet):
    """`claude` has `drop_fields` and `drop_betas`, `both` has not."""
    body = (
        b'{"model": "shared", "context_management": {"a": [1]},\n "messages" : [{"x":1.0}], "m":2}'
    )
    headers = HEADERS | {"anthropic-beta": "context-management-1, other-2,context-1m"}
    for demo, at in ((fleet.claude, "claude"), (fleet.both, "both")):
        if at == "both":
            fleet.claude.fault("status=529")
        assert ask(fleet.gateway, PATH, body=body, headers=headers).headers["x-nexus-backend"] == at
        last = demo.last()
        dropped = b'{"model": "shared","messages" : [{"x":1.0}],"m":2}'
        assert last["body"].encode() == (dropped if at == "claude" else body)
        betas = "other-2" if at == "claude" else headers["anthropic-beta"]
        assert last["headers"]["anthropic-beta"] == betas
    fleet.claude.fault("")
    claude_is_first(fleet)
    only = HEADERS | {"anthropic-beta": "context-1m"}
    assert ask(fleet.gateway, PATH, body=body, headers=only).status == 200
    assert "anthropic-beta" not in fleet.claude.last()["headers"]


@pytest.mark.parametrize("path", [PATH, COUNT])
def test_the_attribution_line_reaches_no_backend_that_caches_prompts(fleet, path):
    """`claude` is of Anthropic's kind, `both` of a kind that runs models."""
    line = b'{"type":"text","text":"x-anthropic-billing-header: cch=0a1b2;"}, '
    body = (
        b'{"model": "shared", "max_tokens":4,"system" : [%b{"type":"text","text":"Be \\u00e9."}],'
        b'\n "messages":[{"role":"user","content":"hi"}], "x":1.50}'
    )
    claude_is_first(fleet)
    assert ask(fleet.gateway, path, body=body % line, headers=HEADERS).status == 200
    assert fleet.claude.last()["body"].encode() == body % line
    fleet.claude.fault("status=529")
    assert ask(fleet.gateway, path, body=body % line, headers=HEADERS).status == 200
    assert fleet.both.last()["body"].encode() == body % b""


@pytest.mark.parametrize("path", [PATH, COUNT])
def test_thinking_that_a_translation_has_made_reaches_no_backend(fleet, path):
    """Anthropic's servers would refuse its signature, and the conversation would be lost."""
    block = b'{"type":"thinking","thinking":"Hm","signature":"nexus"},'
    body = (
        b'{"model":"shared","max_tokens":4,"messages":[{"role":"user","content":"hi"},'
        b'{"role":"assistant","content":[%b{"type":"text","text":"So","x":1.50}]},'
        b'{"role":"user","content":"go on"}]}'
    )
    claude_is_first(fleet)
    assert ask(fleet.gateway, path, body=body % block, headers=HEADERS).status == 200
    assert fleet.claude.last()["body"].encode() == body % b""


def test_a_backend_of_anthropics_kind_always_gets_a_version(fleet):
    claude_is_first(fleet)
    assert fleet.claude.last()["headers"]["anthropic-version"] == "2023-06-01"


def test_tokens_are_counted_by_the_backend(fleet):
    count = fleet.client.messages.count_tokens(model="shared", messages=ASKED["messages"])
    assert count.input_tokens > 0
    assert fleet.moves() == {
        "nexus_requests_started_total count_tokens": 1,
        "nexus_requests_total claude shared 200": 1,
        "nexus_upstream_attempts_total claude ok": 1,
        "nexus_dialect_requests_total count_tokens native": 1,
    }


def test_tokens_that_no_backend_counts_are_estimated(fleet):
    """`[endpoints] count_tokens` is `estimate` here."""
    asked = {"model": "plain-only", "messages": [{"role": "user", "content": "x" * 3000}]}
    reply = requests.post(fleet.base + COUNT, json=asked, timeout=10)
    assert (reply.status_code, reply.headers["x-nexus-estimated"]) == (200, "true")
    assert 1000 <= reply.json()["input_tokens"] <= 1020
    assert fleet.moves() == {
        "nexus_requests_started_total count_tokens": 1,
        "nexus_requests_total none plain_only 200": 1,
    }
    reply = requests.post(fleet.base + COUNT, json=asked | {"model": "nobody"}, timeout=10)
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")


def test_requests_go_only_where_their_api_is_spoken(fleet):
    assert requests.post(f"{fleet.base}/v1/chat/completions", json=CHAT, timeout=10).ok
    assert "nexus_requests_total both shared 200" in fleet.moves()
    for path, model, other in (
        (PATH, "plain-only", "plain"),
        ("/v1/chat/completions", "claude-only", "claude"),
    ):
        reply = requests.post(fleet.base + path, json=ASKED | {"model": model}, timeout=10)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (404, "dialect_not_spoken")
        assert other in error["message"]
        assert any("model_not_found" in name for name in fleet.moves())


def test_errors_of_the_gateway_have_anthropics_form(fleet):
    with pytest.raises(anthropic.NotFoundError) as caught:
        fleet.client.messages.create(**(ASKED | {"model": "nobody"}))
    error, response = caught.value.body, caught.value.response
    assert (error["type"], error["error"]["type"]) == ("error", "not_found_error")
    assert error["request_id"] == response.headers["request-id"]
    assert response.headers["request-id"] == response.headers["x-request-id"]
    reply = ask(fleet.gateway, PATH, body=b"{}", headers=HEADERS)
    assert reply.status == 400
    assert json.loads(reply.content)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 529])
def test_errors_of_the_backend_come_back_as_they_were(fleet, status):
    for demo in (fleet.claude, fleet.both):
        demo.fault(f"status={status},message=odd words")
    direct = requests.post(fleet.both.url + PATH, json=ASKED, timeout=10)
    reply = ask(fleet.gateway, PATH, body=BODY, headers=HEADERS)
    assert (reply.status, reply.content) == (direct.status_code, direct.content)
    counted = [name for name in fleet.moves() if name.startswith("nexus_requests_total")]
    assert [name.split()[2:] for name in counted] == [["shared", str(status)]]


@pytest.mark.parametrize(
    ("fault", "stream"),
    [
        ("status=529", False),
        ("status=529", True),
        ("break_after=2", False),
        ("break_after=2", True),
        ("error_after=1,error_code=529", True),
    ],
)
def test_before_content_another_backend_is_tried(fleet, fault, stream):
    claude_is_first(fleet)
    fleet.claude.fault(fault)
    reply = ask(
        fleet.gateway, PATH, body=json.dumps(ASKED | {"stream": stream}).encode(), headers=HEADERS
    )
    assert reply.status == 200
    assert reply.content.count(b"event: message_start") == int(stream)
    assert fleet.moves()["nexus_requests_total both shared 200"] == 1


@pytest.mark.parametrize(
    ("fault", "kind", "end"),
    [
        ("break_after=5", "api_error", "upstream_reset"),
        ("no_done", "api_error", "upstream_truncated"),
        ("error_after=5", "api_error", "in_band_error"),
        ("error_after=5,error_code=529", "overloaded_error", "in_band_error"),
    ],
)
def test_after_content_the_client_is_told_within_the_stream(fleet, fault, kind, end):
    asked = ASKED | {"model": "claude-only"}
    until(lambda: ask(fleet.gateway, PATH, body=json.dumps(asked).encode()).status == 200)
    fleet.moves()
    fleet.claude.fault(fault)
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(fleet.client.messages.create(**asked, stream=True))
    assert caught.value.body["error"]["type"] == kind
    moves = fleet.moves()
    assert moves.get(f"nexus_stream_ends_total claude {end}") == 1, moves
    assert moves["nexus_requests_total claude claude_only 502"] == 1


def test_models_are_listed_in_either_form(fleet):
    page = fleet.client.models.list()
    assert {model.id for model in page} == {"shared", "claude-only", "plain-only"}
    assert fleet.client.models.retrieve("shared").display_name == "shared"
    with pytest.raises(anthropic.NotFoundError) as caught:
        fleet.client.models.retrieve("nobody")
    assert caught.value.body["error"]["type"] == "not_found_error"
    listed = get_json(f"{fleet.base}/v1/models")
    assert (listed["object"], {model["object"] for model in listed["data"]}) == ("list", {"model"})
