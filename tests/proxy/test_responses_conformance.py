"""OpenAI's client gets the same with and without the gateway: each kind of event and of item."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.processes import Gateway
from tests.support.replay import Replay, Script, in_packets, whole

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
CORPUS = Path(__file__).parent.parent / "corpus" / "streams"
ALTERED = {"responses-cut", "responses-failed-first"}
"""The client gets an event more, or another backend is tried."""
STREAMS = {
    file.stem: file.read_bytes()
    for file in sorted(CORPUS.glob("responses-*.sse"))
    if file.stem not in ALTERED
}
TEXT = {
    "type": "message",
    "id": "msg_1",
    "status": "completed",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Hé\u2028!", "annotations": [], "logprobs": []}],
}
CITED = TEXT | {
    "content": [
        {
            "type": "output_text",
            "text": "So it is.",
            "annotations": [
                {
                    "type": "url_citation",
                    "url": "https://a.example/",
                    "title": "A",
                    "start_index": 0,
                    "end_index": 2,
                }
            ],
            "logprobs": [{"token": "So", "bytes": [83, 111], "logprob": -0.5, "top_logprobs": []}],
        }
    ]
}
REFUSED = TEXT | {"content": [{"type": "refusal", "refusal": "No."}]}
REASONING = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "I think."}],
    "encrypted_content": "gAAAA",
    "status": "completed",
}


def call(nth: int, arguments: str = '{"in": "Ulm"}') -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{nth}",
        "call_id": f"call_{nth}",
        "name": "weather",
        "arguments": arguments,
        "status": "completed",
    }


SEARCH = {
    "type": "web_search_call",
    "id": "ws_1",
    "status": "completed",
    "action": {"type": "search", "query": "weather"},
}
OUTPUTS: dict[str, list[dict[str, Any]]] = {
    "text": [TEXT],
    "citations": [CITED],
    "refusal": [REFUSED],
    "reasoning": [REASONING, TEXT],
    "reasoning only": [REASONING],
    "call": [call(1)],
    "call without arguments": [call(1, "")],
    "parallel calls": [REASONING, call(1), call(2, "{}")],
    "custom tool": [
        {"type": "custom_tool_call", "id": "c", "call_id": "x", "name": "sh", "input": "ls -l"}
    ],
    "web search": [SEARCH, CITED],
    "file search": [
        {
            "type": "file_search_call",
            "id": "fs",
            "status": "completed",
            "queries": ["q"],
            "results": [{"file_id": "f", "filename": "a.txt", "score": 0.5, "text": "t"}],
        }
    ],
    "code": [
        {
            "type": "code_interpreter_call",
            "id": "ci",
            "status": "completed",
            "code": "1+1",
            "container_id": "k",
            "outputs": [{"type": "logs", "logs": "2"}],
        }
    ],
    "image": [
        {"type": "image_generation_call", "id": "ig", "status": "completed", "result": "aGk="}
    ],
    "remote tool": [
        {
            "type": "mcp_call",
            "id": "mcp",
            "server_label": "s",
            "name": "n",
            "arguments": "{}",
            "output": "done",
        }
    ],
    "unknown item": [{"type": "of_next_year", "id": "u", "anything": [1.50, None, {"a": []}]}],
    "nothing": [],
}
ENDS: dict[str, dict[str, Any]] = {
    "incomplete": {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
    "filtered": {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
    "failed": {"status": "failed", "error": {"code": "server_error", "message": "It broke."}},
    "queued": {"status": "queued", "background": True, "output": [], "usage": None},
    "without usage": {"usage": None},
    "in a conversation": {"conversation": {"id": "conv_1"}},
    "of a schema": {"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}},
}
ERRORS: dict[str, tuple[int, dict[str, Any]]] = {
    "invalid": (400, {"message": "no", "type": "invalid_request_error", "param": "input"}),
    "too long": (400, {"message": "too long", "code": "context_length_exceeded"}),
    "no such response": (404, {"message": "Not found.", "type": "invalid_request_error"}),
    "unprocessable": (422, {"message": "no", "code": None}),
}


def response(output: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1.5,
        "status": "completed",
        "model": "m",
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [{"type": "namespace", "name": "n", "tools": []}],
        "usage": {
            "input_tokens": 12,
            "input_tokens_details": {"cached_tokens": 4},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 19,
        },
        "metadata": {},
    }


def begun(data: bytes) -> int:
    """Where the first delta of a stream ends; 0 without any.

    A stream pauses there: of one that fails before the client has got anything, it gets an error.
    """
    first = data.find(b".delta\n")
    return data.index(b"\n\n", first) + 2 if first >= 0 else 0


SCRIPTS: dict[str, Script] = (
    {name: in_packets(data, 700, pause_at=begun(data)) for name, data in STREAMS.items()}
    | {f"item {name}": whole(200, response(output)) for name, output in OUTPUTS.items()}
    | {f"end {name}": whole(200, response([TEXT]) | changed) for name, changed in ENDS.items()}
    | {f"error {name}": whole(code, {"error": error}) for name, (code, error) in ERRORS.items()}
)


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def clients(request, tmp_path_factory) -> Iterator[tuple[openai.OpenAI, openai.OpenAI]]:
    """One that asks the backend itself, and one that asks the gateway."""
    with Replay() as backend:
        backend.scripts |= SCRIPTS
        config = (
            f'[[backends]]\nname = "up"\nurl = "{backend.url}"\ntype = "openai"\n'
            'dialects = ["responses"]\n[circuit_breaker]\nenabled = false\n'
            "[routing]\nmax_retries = 0\n"
        )
        with Gateway(tmp_path_factory.mktemp("same"), config, environ=request.param) as gateway:
            direct, through = (
                openai.OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0)
                for base in (backend.url, gateway.base)
            )
            with direct, through:
                yield direct, through


def outcome(client: openai.OpenAI, name: str) -> tuple[bytes, object]:
    """The bytes that come, and what the client makes of them."""
    asked: dict[str, Any] = {"model": name, "input": "hi", "stream": name in STREAMS}
    try:
        with client.responses.with_streaming_response.create(**asked) as raw:
            data = raw.read()
        found = client.responses.create(**asked)
        if name in STREAMS:
            return data, [event.to_dict(warnings=False) for event in found]
        return data, found.to_dict(warnings=False)
    except openai.APIStatusError as error:
        return error.response.content, (type(error), error.status_code, error.body)
    except openai.APIError as error:
        return data, (type(error), error.message, error.body)


def test_there_are_enough_cases():
    kinds = {
        json.loads(line.removeprefix("data: "))["type"]
        for data in STREAMS.values()
        for line in data.decode().splitlines()
        if line.startswith("data: {")
    }
    assert len(SCRIPTS) >= 26
    assert len(kinds) >= 20, kinds


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_client_gets_the_same(clients, name):
    direct, through = clients
    expected = outcome(direct, name)
    assert expected[0]
    assert outcome(through, name) == expected
