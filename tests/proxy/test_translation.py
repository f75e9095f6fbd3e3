"""Clients on backends that speak another API: over the fast path and through Flask."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
import requests

from tests.server.asking import ask
from tests.support.metrics import moved
from tests.support.processes import Demo, Gateway, backend_toml
from tests.support.replay import Replay

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
MESSAGES, CHAT = "/v1/messages", "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
ASKED = {"model": "chat-only", "max_tokens": 4, "messages": HI}
TOOL = {"name": "weather", "description": "d", "input_schema": {"type": "object"}}
FAMILIES = (
    "nexus_requests_started_total",
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_tokens_total_sum",
    "nexus_token_details_total",
    "nexus_usage_total",
    "nexus_time_to_first_token_seconds_count",
    "nexus_stream_ends_total",
    "nexus_stream_events_total",
    "nexus_stream_longest_gap_seconds_count",
    "nexus_upstream_attempts_total",
    "nexus_translated_requests_total",
    "nexus_dialect_requests_total",
)
CALLS = (
    {"role": "assistant", "content": None},
    {"reasoning": "It rains."},
    {"content": "I look."},
    {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}]},
    {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "weather", "arguments": "{"}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"in":"Ulm"}'}}]},
    {"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]},
)
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 9,
    "prompt_tokens_details": {"cached_tokens": 20},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def streams_calls(_: dict, sock: socket.socket) -> None:
    """A backend with two calls of tools whose pieces interleave."""
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in CALLS]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    events.append({"choices": [], "usage": USAGE})
    data = b"".join([b"data: %b\n\n" % json.dumps(event).encode() for event in events])
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    sock.sendall(head + data + b"data: [DONE]\n\n")


class Fleet:
    """A gateway before backends that speak one API each, but for `both`."""

    def __init__(
        self, gateway: Gateway, chat: Demo, both: Demo, claude: Demo, tools: Replay
    ) -> None:
        self.gateway, self.chat, self.both, self.tools = gateway, chat, both, tools
        self.claude = claude
        self.base = gateway.base
        self.client = anthropic.Anthropic(base_url=self.base, api_key="unused", max_retries=0)
        self.openai = openai.OpenAI(base_url=f"{self.base}/v1", api_key="unused", max_retries=0)
        self._before = gateway.settled()

    def moves(self) -> dict[str, float]:
        """What has moved since the last call, by family and label values."""
        before, self._before = self._before, self.gateway.settled()
        return {
            f"{name} {' '.join(value for _, value in sorted(labels))}": change
            for (name, labels), change in moved(before, self._before, FAMILIES).items()
        }


LATE = {"late-1", "late-2", "native"}


def late(name: str, demo: Demo, *, dialect: str = "openai", priority: int = 1) -> str:
    """A backend with the model `late`."""
    return (
        f'[[backends]]\nname = "{name}"\nurl = "{demo.url}"\ntype = "vllm"\nlist = false\n'
        f'dialects = ["{dialect}"]\npriority = {priority}\n'
        '[[backends.models]]\nname = "late"\nupstream = "shared"\n'
    )


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def running(request, tmp_path_factory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("translation")
    with (
        Demo(directory, name="chat", models=["shared", "chat-only"], pace=40) as chat,
        Demo(directory, name="both", models=["shared"], pace=0) as both,
        Demo(directory, name="claude", models=["claude-only"], pace=40) as claude,
        Replay() as tools,
    ):
        tools.scripts["tools"] = streams_calls
        config = (
            backend_toml(chat, priority=1, dialects=["openai"])
            + backend_toml(both, priority=1)
            + backend_toml(claude).replace('"vllm"', '"anthropic"')
            + '[[backends.models]]\nname = "claude-only"\nmax_output_tokens = 7\n'
            + f'[[backends]]\nname = "tools"\nurl = "{tools.url}"\ntype = "generic"\n'
            + f'[[backends]]\nname = "closed"\nurl = "{tools.url}"\ntype = "generic"\n'
            + "translate = false\npriority = 1\n"
            + late("late-1", chat)
            + late("late-2", chat)
            + late("native", both, dialect="anthropic", priority=2)
            + "[circuit_breaker]\nenabled = false\n[routing]\nmax_retries = 1\n"
        )
        with Gateway(directory, config, environ=request.param) as gateway:
            fleet = Fleet(gateway, chat, both, claude, tools)
            with fleet.client, fleet.openai:
                yield fleet


@pytest.fixture
def fleet(running: Fleet) -> Iterator[Fleet]:
    running.moves()
    yield running
    for demo in (running.chat, running.both, running.claude):
        demo.fault("")


def test_a_whole_message_comes_from_a_backend_of_chat_completions(fleet):
    reply = fleet.client.messages.with_raw_response.create(
        **ASKED, system="Be kind.", extra_query={"beta": "true"}
    )
    message = reply.parse()
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 4)
    assert reply.headers["x-nexus-translated"] == "messages-to-chat"
    last = fleet.chat.last()
    assert last["target"] == CHAT
    assert json.loads(last["body"]) == {
        "model": "chat-only",
        "max_tokens": 4,
        "messages": [{"role": "system", "content": "Be kind."}, *HI],
    }
    assert fleet.moves() == {
        "nexus_requests_started_total messages": 1,
        "nexus_requests_total chat chat_only 200": 1,
        "nexus_upstream_attempts_total chat ok": 1,
        "nexus_tokens_total_sum chat chat_only prompt": message.usage.input_tokens,
        "nexus_tokens_total_sum chat chat_only completion": 4,
        "nexus_usage_total reported": 1,
        "nexus_translated_requests_total chat messages-to-chat": 1,
        "nexus_dialect_requests_total messages translated": 1,
    }


def test_a_stream_comes_from_a_backend_of_chat_completions(fleet):
    with fleet.client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert (text, message.stop_reason) == (message.content[0].text, "max_tokens")
    assert len(text.split()) == 4
    assert fleet.moves() == {
        "nexus_requests_started_total messages": 1,
        "nexus_requests_total chat chat_only 200": 1,
        "nexus_upstream_attempts_total chat ok": 1,
        "nexus_tokens_total_sum chat chat_only prompt": message.usage.input_tokens,
        "nexus_tokens_total_sum chat chat_only completion": 4,
        "nexus_usage_total requested": 1,
        "nexus_time_to_first_token_seconds_count chat chat_only": 1,
        "nexus_stream_ends_total chat complete": 1,
        "nexus_stream_events_total chat chat_only": 7,
        "nexus_stream_longest_gap_seconds_count chat chat_only": 1,
        "nexus_translated_requests_total chat messages-to-chat": 1,
        "nexus_dialect_requests_total messages translated": 1,
    }


def check_calls(message: anthropic.types.Message) -> None:
    thinking, text, first, second = message.content
    assert (thinking.thinking, text.text) == ("It rains.", "I look.")
    assert (first.id, first.name, first.input) == ("c1", "weather", {"in": "Ulm"})
    assert (second.id, second.input) == ("c2", {})
    assert message.stop_reason == "tool_use"
    used = message.usage
    assert (used.input_tokens, used.cache_read_input_tokens, used.output_tokens) == (10, 20, 9)


def test_calls_of_tools_arrive_whole(fleet):
    asked = ASKED | {"model": "tools", "tools": [TOOL]}
    with fleet.client.messages.stream(**asked) as stream:
        check_calls(stream.get_final_message())
    assert fleet.tools.asked[-1]["tools"][0]["function"]["name"] == "weather"
    assert fleet.tools.asked[-1]["stream_options"] == {"include_usage": True}
    moves = fleet.moves()
    assert moves["nexus_token_details_total tools tools cached"] == 20
    assert moves["nexus_token_details_total tools tools reasoning"] == 3

    async def asynchronously() -> anthropic.types.Message:
        client = anthropic.AsyncAnthropic(base_url=fleet.base, api_key="unused", max_retries=0)
        async with client, client.messages.stream(**asked) as stream:
            return await stream.get_final_message()

    check_calls(asyncio.run(asynchronously()))


def test_a_backend_that_speaks_the_clients_api_is_preferred(fleet):
    asked = ASKED | {"model": "shared"}
    for _ in range(6):
        reply = requests.post(fleet.base + MESSAGES, json=asked, timeout=10)
        assert reply.headers["x-nexus-backend"] == "both"
        assert "x-nexus-translated" not in reply.headers
    assert not any("translated" in name for name in fleet.moves())


def test_a_translated_backend_is_tried_after_it_fails(fleet):
    fleet.both.fault("status=500")
    reply = requests.post(fleet.base + MESSAGES, json=ASKED | {"model": "shared"}, timeout=10)
    assert (reply.status_code, reply.headers["x-nexus-backend"]) == (200, "chat")
    assert reply.json()["type"] == "message"
    assert fleet.moves() == {
        "nexus_requests_started_total messages": 1,
        "nexus_requests_total chat shared 200": 1,
        "nexus_upstream_attempts_total both backend_error": 1,
        "nexus_upstream_attempts_total chat ok": 1,
        "nexus_tokens_total_sum chat shared prompt": reply.json()["usage"]["input_tokens"],
        "nexus_tokens_total_sum chat shared completion": 4,
        "nexus_usage_total reported": 1,
        "nexus_translated_requests_total chat messages-to-chat": 1,
        "nexus_dialect_requests_total messages translated": 1,
    }


def test_a_field_that_cannot_be_translated_is_named(fleet):
    reply = ask(fleet.gateway, MESSAGES, body=json.dumps(ASKED | {"mcp_servers": []}).encode())
    error = json.loads(reply.content)["error"]
    assert (reply.status, error["type"], error["code"], error["param"]) == (
        400,
        "invalid_request_error",
        "not_translatable",
        "mcp_servers",
    )
    assert fleet.moves() == {
        "nexus_requests_started_total messages": 1,
        "nexus_requests_total chat chat_only 400": 1,
        "nexus_errors_total invalid_request chat_only": 1,
        "nexus_upstream_attempts_total chat invalid_request": 1,
        "nexus_translated_requests_total chat messages-to-chat": 1,
        "nexus_dialect_requests_total messages translated": 1,
    }


def test_what_has_no_translation_goes_to_a_backend_that_needs_none(fleet):
    """However many backends that need one have a better priority, and whatever `max_retries`."""
    asked = ASKED | {"model": "late", "mcp_servers": []}
    reply = ask(fleet.gateway, MESSAGES, body=json.dumps(asked).encode())
    assert (reply.status, reply.headers["x-nexus-backend"]) == (200, "native")
    moves = fleet.moves()
    assert moves["nexus_requests_total native late 200"] == 1
    attempts = {key: moves[key] for key in moves if key.startswith("nexus_upstream_attempts_total")}
    assert sum(attempts.values()) == 2
    assert attempts["nexus_upstream_attempts_total native ok"] == 1


@pytest.mark.parametrize(
    ("fault", "status", "kind", "words"),
    [
        ("status=400,message=odd words", 400, "invalid_request_error", "odd words"),
        ("status=429,message=odd words", 429, "rate_limit_error", "odd words"),
        ("status=500,message=odd words", 500, "api_error", "odd words"),
        ("status=503,message=odd words", 503, "overloaded_error", "odd words"),
        ("status=500,message=overloaded", 503, "overloaded_error", "overloaded"),
        ("status=200,error_code=503", 503, "overloaded_error", "Backend chat: "),
        (
            "status=500,message=input is too large to process",
            400,
            "invalid_request_error",
            "prompt is too long: Backend chat responded 500: input is too large to process",
        ),
    ],
)
def test_an_error_of_the_backend_gets_the_clients_form(fleet, fault, status, kind, words):
    fleet.chat.fault(fault)
    with pytest.raises(anthropic.APIStatusError) as caught:
        fleet.client.messages.create(**ASKED)
    assert caught.value.status_code == status
    assert caught.value.body["error"]["type"] == kind
    assert words in caught.value.body["error"]["message"]
    assert caught.value.request_id == caught.value.body["request_id"] is not None


def test_the_tool_runner_does_without_a_thread(fleet):
    """Anthropic's client has the server hold the conversation, unless that refuses `thread`."""

    @anthropic.beta_tool
    def weather(place: str) -> str:
        """The weather at a place."""
        raise AssertionError(place)

    runner = fleet.client.beta.messages.tool_runner(**ASKED, tools=[weather])
    [message] = list(runner)
    assert message.usage.output_tokens == 4
    moves = fleet.moves()
    assert moves["nexus_requests_total chat chat_only 400"] == 1
    assert moves["nexus_requests_total chat chat_only 200"] == 1


@pytest.mark.parametrize(
    ("fault", "kind", "end"),
    [
        ("break_after=3", "api_error", "upstream_reset"),
        ("no_done", "api_error", "upstream_truncated"),
        ("error_after=3", "api_error", "in_band_error"),
    ],
)
def test_the_end_of_a_stream_is_told_in_the_clients_form(fleet, fault, kind, end):
    fleet.chat.fault(fault)
    caught = None
    try:
        events = list(fleet.client.messages.create(**ASKED, stream=True))
    except anthropic.APIStatusError as error:
        caught = error.body["error"]["type"]
    else:
        assert events[-1].type == "message_stop"
    assert caught == kind
    moves = fleet.moves()
    assert moves.get(f"nexus_stream_ends_total chat {end}") == 1, moves


CLAUDE = {"model": "claude-only", "max_tokens": 4, "messages": HI}


def test_openais_client_is_served_by_a_backend_of_anthropics_api(fleet):
    reply = fleet.openai.chat.completions.with_raw_response.create(**CLAUDE)
    completion = reply.parse()
    assert (completion.choices[0].finish_reason, completion.usage.completion_tokens) == (
        "length",
        4,
    )
    assert reply.headers["x-nexus-translated"] == "chat-to-messages"
    last = fleet.claude.last()
    assert (last["target"], last["headers"]["anthropic-version"]) == (MESSAGES, "2023-06-01")
    said = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert json.loads(last["body"]) == CLAUDE | {"messages": said}
    assert fleet.moves() == {
        "nexus_requests_started_total chat_completions": 1,
        "nexus_requests_total claude claude_only 200": 1,
        "nexus_upstream_attempts_total claude ok": 1,
        "nexus_tokens_total_sum claude claude_only prompt": completion.usage.prompt_tokens,
        "nexus_tokens_total_sum claude claude_only completion": 4,
        "nexus_usage_total reported": 1,
        "nexus_translated_requests_total claude chat-to-messages": 1,
        "nexus_dialect_requests_total chat_completions translated": 1,
    }


def test_a_limit_that_is_missing_is_the_models(fleet):
    asked = {"model": "claude-only", "messages": HI}
    reply = requests.post(fleet.base + CHAT, json=asked, timeout=10)
    assert reply.status_code == 200
    assert json.loads(fleet.claude.last()["body"])["max_tokens"] == 7


def test_openais_client_gets_a_stream_of_chunks(fleet):
    chunks = list(fleet.openai.chat.completions.create(**CLAUDE, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len(text.split()) == 4
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 4
    assert fleet.moves() == {
        "nexus_requests_started_total chat_completions": 1,
        "nexus_requests_total claude claude_only 200": 1,
        "nexus_upstream_attempts_total claude ok": 1,
        "nexus_tokens_total_sum claude claude_only prompt": chunks[-1].usage.prompt_tokens,
        "nexus_tokens_total_sum claude claude_only completion": 4,
        "nexus_usage_total reported": 1,
        "nexus_time_to_first_token_seconds_count claude claude_only": 1,
        "nexus_stream_ends_total claude complete": 1,
        "nexus_stream_events_total claude claude_only": 8,
        "nexus_stream_longest_gap_seconds_count claude claude_only": 1,
        "nexus_translated_requests_total claude chat-to-messages": 1,
        "nexus_dialect_requests_total chat_completions translated": 1,
    }


def test_openais_client_gets_errors_in_its_form(fleet):
    with pytest.raises(openai.BadRequestError) as refused:
        fleet.openai.chat.completions.create(**CLAUDE, n=2)
    assert (refused.value.code, refused.value.param) == ("not_translatable", "n")
    fleet.claude.fault("status=400,message=odd words")
    with pytest.raises(openai.BadRequestError, match="odd words") as caught:
        fleet.openai.chat.completions.create(**CLAUDE)
    assert caught.value.type == "invalid_request_error"
    fleet.claude.fault("status=400,message=prompt is too long")
    with pytest.raises(openai.BadRequestError) as caught:
        fleet.openai.chat.completions.create(**CLAUDE)
    assert caught.value.code == "context_length_exceeded"
    fleet.claude.fault("break_after=5")
    with pytest.raises(openai.APIError):
        list(fleet.openai.chat.completions.create(**CLAUDE, stream=True))
    assert fleet.moves()["nexus_stream_ends_total claude upstream_reset"] == 1


ASKS = {"model": "chat-only", "max_output_tokens": 4, "input": "hi", "store": False}
DROPPED = "x-nexus-translated-dropped"


def test_a_whole_response_comes_from_a_backend_of_chat_completions(fleet):
    reply = fleet.openai.responses.with_raw_response.create(
        **ASKS, instructions="Be kind.", tools=[{"type": "web_search"}], include=[]
    )
    response = reply.parse()
    assert (response.status, response.usage.output_tokens) == ("incomplete", 4)
    assert len(response.output_text.split()) == 4
    assert reply.headers["x-nexus-translated"] == "responses-to-chat"
    assert reply.headers[DROPPED] == "include, tools.web_search"
    last = fleet.chat.last()
    assert last["target"] == CHAT
    assert json.loads(last["body"]) == {
        "model": "chat-only",
        "max_tokens": 4,
        "messages": [{"role": "system", "content": "Be kind."}, *HI],
    }
    assert fleet.moves() == {
        "nexus_requests_started_total responses": 1,
        "nexus_requests_total chat chat_only 200": 1,
        "nexus_upstream_attempts_total chat ok": 1,
        "nexus_tokens_total_sum chat chat_only prompt": response.usage.input_tokens,
        "nexus_tokens_total_sum chat chat_only completion": 4,
        "nexus_usage_total reported": 1,
        "nexus_translated_requests_total chat responses-to-chat": 1,
        "nexus_dialect_requests_total responses translated": 1,
    }
    stored = requests.get(f"{fleet.base}/v1/responses/{response.id}", timeout=10)
    assert stored.status_code == 404
    fleet.moves()


def test_a_stream_of_a_response_comes_from_a_backend_of_chat_completions(fleet):
    with fleet.openai.responses.create(**ASKS, stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.incomplete"
    response = events[-1].response
    text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
    assert text == response.output_text
    assert fleet.moves() == {
        "nexus_requests_started_total responses": 1,
        "nexus_requests_total chat chat_only 200": 1,
        "nexus_upstream_attempts_total chat ok": 1,
        "nexus_tokens_total_sum chat chat_only prompt": response.usage.input_tokens,
        "nexus_tokens_total_sum chat chat_only completion": 4,
        "nexus_usage_total requested": 1,
        "nexus_time_to_first_token_seconds_count chat chat_only": 1,
        "nexus_stream_ends_total chat complete": 1,
        "nexus_stream_events_total chat chat_only": 7,
        "nexus_stream_longest_gap_seconds_count chat chat_only": 1,
        "nexus_translated_requests_total chat responses-to-chat": 1,
        "nexus_dialect_requests_total responses translated": 1,
    }


def test_calls_of_tools_arrive_as_items_with_their_namespace(fleet):
    function = {"type": "function", "name": "weather", "parameters": {}, "strict": False}
    space = {"type": "namespace", "name": "in", "description": "d", "tools": [function]}
    asked = ASKS | {"model": "tools", "tools": [function, space]}
    with fleet.openai.responses.stream(**asked) as stream:
        response = stream.get_final_response()
    thinking, text, first, second = response.output
    assert thinking.content[0].text == "It rains."
    assert text.content[0].text == "I look."
    assert (first.call_id, first.name, first.arguments) == ("c1", "weather", '{"in":"Ulm"}')
    assert (second.call_id, second.arguments) == ("c2", "{}")
    used = response.usage
    assert (used.input_tokens, used.input_tokens_details.cached_tokens) == (30, 20)
    assert (used.output_tokens, used.output_tokens_details.reasoning_tokens) == (9, 3)
    names = [tool["function"]["name"] for tool in fleet.tools.asked[-1]["tools"]]
    assert names == ["weather", "in__weather"]
    moves = fleet.moves()
    assert moves["nexus_token_details_total tools tools cached"] == 20
    assert moves["nexus_token_details_total tools tools reasoning"] == 3


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ({"previous_response_id": "resp_1"}, "response_not_stored", "previous_response_id"),
        ({"store": True}, "response_not_stored", "store"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "not_translatable", "tools.0"),
    ],
)
def test_what_a_translated_response_cannot_have_is_refused_by_name(fleet, given, code, param):
    with pytest.raises(openai.BadRequestError) as caught:
        fleet.openai.responses.create(**ASKS | given)
    assert (caught.value.code, caught.value.param) == (code, param)
    moves = fleet.moves()
    assert moves["nexus_errors_total invalid_request chat_only"] == 1
    assert moves["nexus_upstream_attempts_total chat invalid_request"] == 1


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        ("break_after=3", "upstream_reset"),
        ("error_after=3", "in_band_error"),
    ],
)
def test_an_error_is_the_last_event_of_a_response_and_has_the_next_number(fleet, fault, end):
    fleet.chat.fault(fault)
    reply = requests.post(f"{fleet.base}/v1/responses", json=ASKS | {"stream": True}, timeout=10)
    events = [
        json.loads(line.removeprefix("data: "))
        for line in reply.text.splitlines()
        if line.startswith("data: ")
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events].count("error") == 1
    assert events[-1]["type"] == "error"
    assert fleet.moves()[f"nexus_stream_ends_total chat {end}"] == 1


def test_fields_that_are_dropped_are_listed(fleet):
    asked = ASKED | {"metadata": {"user_id": "u"}, "thinking": {"type": "disabled"}, "top_k": 3}
    for body in (asked, asked | {"stream": True}):
        reply = requests.post(fleet.base + MESSAGES, json=body, timeout=10)
        assert set(reply.headers[DROPPED].split(", ")) == {"metadata", "thinking"}
    reply = requests.post(fleet.base + CHAT, json=CLAUDE | {"seed": 1, "user": "u"}, timeout=10)
    assert set(reply.headers[DROPPED].split(", ")) == {"seed", "user"}
    reply = requests.post(fleet.base + MESSAGES, json=ASKED, timeout=10)
    assert DROPPED not in reply.headers


def explained(fleet: Fleet, *words: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "nexus", "route", "explain", *words]
    done = subprocess.run(
        [*command, "-c", str(fleet.gateway.file), "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return json.loads(done.stdout)["verdicts"]


def test_explain_names_the_translation(fleet):
    def turns(*words: str) -> dict[str, tuple[int | None, str | None]]:
        found = explained(fleet, "shared", *words)
        return {
            one["backend"]: (one["turn"], one["translation"])
            for one in found
            if one["backend"] not in LATE
        }

    assert turns("--endpoint", "messages") == {
        "both": (1, None),
        "chat": (2, "messages-to-chat"),
        "claude": (None, None),
        "tools": (None, None),
        "closed": (None, None),
    }
    assert turns("--endpoint", "responses")["chat"][1] == "responses-to-chat"
    assert turns("--endpoint", "count_tokens")["chat"] == (None, None)
    assert {translation for _, translation in turns().values()} == {None}


def test_translate_false_forbids_it(fleet):
    outs = {
        one["backend"]: one["out"] for one in explained(fleet, "tools", "--endpoint", "messages")
    }
    assert (outs["tools"], outs["closed"]) == ("", "dialect_not_spoken")
