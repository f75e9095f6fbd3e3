"""The request log of a running gateway, over the fast path and through Flask; and no content of a
request anywhere, on any path."""

import contextlib
import http.client
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nexus.access.keys import digest
from tests.server.asking import ask
from tests.support.metrics import Scrape, moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml, clean_environ

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
KEY = "sk-nx-canary-of-a-key-0123456789"
WRONG_KEY = "sk-nx-canary-of-a-wrong-key-0123456789"
PROMPT, SYSTEM, TOOL, ARGUMENT, BROKEN, ANSWER = CONTENT = [
    f"canary-{place}-0123456789"
    for place in ("prompt", "system", "tool", "argument", "broken", "answer")
]
CONFIG = f"""
[auth]
mode = "keys"
[[teams]]
name = "research"
[[keys]]
id = "k1"
team = "research"
sha256 = ["{digest(KEY)}"]
[costs]
prices = "prices.toml"
[request_log]
path = "%s"
"""
PRICES = '[[price]]\ninput = "1"\noutput = "2"\n'
LINES = "nexus_request_log_lines_total"


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory, demo) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    (directory / "prices.toml").write_text(PRICES)
    plain = backend_toml(demo, discover_models=False, dialects=["openai"])
    config = CONFIG % (directory / "requests.jsonl") + backend_toml(demo)
    config += plain.replace(f'"{demo.name}"', '"plain"')
    config += '[[backends.models]]\nname = "demo-plain"\n'
    environ = {**WAYS[request.param], "NEXUS_ADMIN_TOKEN": "token-of-the-operators"}
    with Gateway(directory, config, environ=environ) as gateway:
        yield gateway


def chat(**more: Any) -> bytes:
    """A request with a canary wherever content may be."""
    call = {"name": "look", "arguments": json.dumps({"at": ARGUMENT})}
    function = {"name": "look", "description": TOOL, "parameters": {"type": "object"}}
    body = {
        "model": "demo-small",
        "max_tokens": 2,
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": PROMPT},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "1", "content": ARGUMENT},
        ],
        "tools": [{"type": "function", "function": function}],
        **more,
    }
    return json.dumps(body).encode()


def message(**more: Any) -> tuple[str, bytes]:
    """The same for Anthropic's clients."""
    call = {"type": "tool_use", "id": "1", "name": "look", "input": {"at": ARGUMENT}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": ARGUMENT}
    body = {
        "model": "demo-small",
        "max_tokens": 20,
        "system": [{"type": "text", "text": SYSTEM}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ],
        "tools": [{"name": "look", "description": TOOL, "input_schema": {"type": "object"}}],
        **more,
    }
    return "/v1/messages", json.dumps(body).encode()


def response(**more: Any) -> tuple[str, bytes]:
    """The same for clients of the Responses API."""
    call = {"type": "function_call", "call_id": "1", "name": "look", "arguments": ARGUMENT}
    body = {
        "model": "demo-small",
        "max_output_tokens": 20,
        "instructions": SYSTEM,
        "store": False,
        "input": [
            {"role": "user", "content": PROMPT},
            call,
            {"type": "function_call_output", "call_id": "1", "output": ARGUMENT},
        ],
        "tools": [{"type": "function", "name": "look", "description": TOOL, "parameters": {}}],
        **more,
    }
    return "/v1/responses", json.dumps(body).encode()


def send(gateway: Gateway, body: bytes, *, key: str = KEY, **headers: str):
    return ask(gateway, body=body, authorization=f"Bearer {key}", **headers)


def lines(gateway: Gateway) -> list[dict[str, Any]]:
    """All lines, those of rotated files included."""
    files = sorted(gateway.directory.glob("requests.jsonl*"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def line_of(gateway: Gateway, id_: str) -> dict[str, Any]:
    return until(lambda: [line for line in lines(gateway) if line["id"] == id_])[0]


def counted(gateway: Gateway, before: Scrape, expected: dict[str, int]) -> None:
    """Exactly so many lines were counted since; a line comes after the request's own metrics."""

    def found() -> dict[str, float]:
        changes = moved(before, gateway.settled(), (LINES,))
        return {dict(labels)["result"]: change for (_, labels), change in changes.items()}

    until(lambda: found() == expected)
    assert found() == expected


def test_a_line_names_who_asked_for_what_and_what_came_of_it(gateway):
    before = gateway.settled()
    reply = send(gateway, chat(), x_request_id="whole")
    usage = json.loads(reply.content)["usage"]
    line = line_of(gateway, "whole")
    assert line.pop("time").endswith("Z")
    assert line.pop("duration_ms") > 0
    assert line["attempts"][0].pop("ms") > 0
    assert line == {
        "id": "whole",
        "key": "k1",
        "team": "research",
        "endpoint": "chat_completions",
        "requested_model": "demo-small",
        "model": "demo-small",
        "backend": "demo-a",
        "status": 200,
        "error": None,
        "end": None,
        "usage": "reported",
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "cached_tokens": None,
        "reasoning_tokens": None,
        "cache_write_tokens": None,
        "cost_usd": reply.headers["x-nexus-cost-usd"],
        "ttft_ms": None,
        "attempts": [{"backend": "demo-a", "model": "demo-small", "outcome": "success"}],
    }
    file = gateway.directory / "requests.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    counted(gateway, before, {"written": 1})


def test_streams_and_refusals_have_a_line(gateway):
    send(gateway, chat(stream=True), x_request_id="stream")
    line = line_of(gateway, "stream")
    assert (line["status"], line["end"], line["backend"]) == (200, "complete", "demo-a")
    assert line["ttft_ms"] > 0
    send(gateway, chat(model="no-such"), x_request_id="unknown")
    line = line_of(gateway, "unknown")
    assert (line["status"], line["error"], line["attempts"]) == (404, "model_not_found", [])
    assert line["requested_model"] == "no-such"
    send(gateway, chat(), key=WRONG_KEY, x_request_id="nobody")
    line = line_of(gateway, "nobody")
    assert (line["status"], line["error"], line["key"]) == (401, "invalid_api_key", "unknown")


def test_a_model_that_a_terminal_would_obey_is_escaped(gateway):
    send(gateway, chat(model="a\u202eb\n"), x_request_id="escaped")
    assert line_of(gateway, "escaped")["requested_model"] == r"a\u202eb\u000a"


def test_workers_rotate_the_file_without_a_lost_line(gateway):
    text = gateway.file.read_text()
    gateway.file.write_text(text.replace("[request_log]", "[request_log]\nrotate_bytes = 4096"))
    command(gateway, "reload")
    before, known = gateway.settled(), len(lines(gateway))

    def client() -> None:
        for _ in range(50):
            send(gateway, chat())

    clients = [threading.Thread(target=client) for _ in range(4)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    counted(gateway, before, {"written": 200})
    assert len(lines(gateway)) == known + 200
    assert len(list(gateway.directory.glob("requests.jsonl.*"))) > 2
    gateway.file.write_text(text)
    command(gateway, "reload")


def test_a_file_that_cannot_be_written_is_a_log_line_and_a_count(gateway):
    text = gateway.file.read_text()
    missing = gateway.directory / "missing" / "requests.jsonl"
    gateway.file.write_text(text.replace(str(gateway.directory / "requests.jsonl"), str(missing)))
    command(gateway, "reload")
    before = gateway.settled()
    assert [send(gateway, chat()).status for _ in range(6)] == [200] * 6
    counted(gateway, before, {"lost": 6})
    reports = until(lambda: gateway.lines("lines of the request log are lost"))
    assert len(reports) <= 2, "one for each worker"
    assert reports[0]["path"] == str(missing)
    assert "No such file" in reports[0]["why"]
    finding = next(
        one for one in json.loads(command(gateway, "doctor", "--no-request", "--json"))["findings"]
        if one["area"] == "request log"
    )  # fmt: skip
    assert finding["state"] == "fail"
    missing.parent.mkdir()
    send(gateway, chat())
    assert until(missing.read_text).count("\n") == 1
    gateway.file.write_text(text)
    command(gateway, "reload")


def command(gateway: Gateway, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nexus", *words, "-c", str(gateway.file)],
        capture_output=True, text=True, timeout=60, env=clean_environ(),
    )  # fmt: skip
    return done.stdout + done.stderr


def test_no_content_and_no_key_anywhere(gateway, demo):
    """Whatever becomes of a request, nothing keeps or shows what it says."""
    assert send(gateway, chat()).status == 200
    assert send(gateway, chat(stream=True)).status == 200
    assert send(gateway, chat(), key=WRONG_KEY).status == 401
    assert send(gateway, chat(model="no-such")).status == 404
    assert send(gateway, chat(messages=PROMPT)).status in (200, 400)
    assert send(gateway, chat(max_tokens=PROMPT)).status in (200, 400)
    assert send(gateway, f'{{"model": "{BROKEN}'.encode()).status == 400
    assert send(gateway, chat(), content_type=f"text/{BROKEN}").status == 415
    for fault, stream, status in (
        (f"status=500,message=cannot read {PROMPT} of {SYSTEM}", False, 502),
        (f"status=400,message={ANSWER}", False, 400),
        (f"status=400,message={ANSWER}", True, 400),
        ("break_after=3", True, 200),
    ):
        with faulty(demo, fault):
            assert send(gateway, chat(stream=stream, max_tokens=20)).status == status, fault
    for make, model, stream in itertools.product(
        (message, response), ("demo-small", "demo-plain"), (False, True)
    ):
        assert post(gateway, *make(model=model, stream=stream)) == 200
        with faulty(demo, "break_after=5"):
            assert post(gateway, *make(model=model, stream=True)) == 200
        with faulty(demo, f"status=400,message=cannot read {PROMPT} of {SYSTEM}"):
            assert post(gateway, *make(model=model, stream=stream)) == 400
        assert post(gateway, *make(model=model, tools=[{"type": TOOL}], stream=stream)) in (
            (400,) if model == "demo-plain" else (200,)
        )
    assert post(gateway, *message(model="demo-plain", mcp_servers=[{"url": PROMPT}])) == 400
    assert post(gateway, *response(model="demo-plain", previous_response_id=PROMPT)) == 400
    kill_workers(gateway, demo)
    assert send(gateway, chat()).status == 200
    outputs = shown(gateway)
    assert '"key":"k1"' in outputs["requests.jsonl"]
    assert '"invalid_api_key"' in outputs["requests.jsonl"]
    assert '"k1"' in outputs["gateway.log"]
    assert "cannot read *** of ***" in outputs["gateway.log"]
    canaries = [KEY, WRONG_KEY, *CONTENT]
    found = [(name, one) for name, text in outputs.items() for one in canaries if one in text]
    assert found == []


@contextlib.contextmanager
def faulty(demo: Demo, fault: str) -> Iterator[None]:
    demo.fault(fault)
    try:
        yield
    finally:
        demo.fault("")


def post(gateway: Gateway, path: str, body: bytes) -> int:
    return ask(gateway, path, body=body, authorization=f"Bearer {KEY}").status


def kill_workers(gateway: Gateway, demo: Demo) -> None:
    """Kill every worker while one has a request."""
    with faulty(demo, "delay=30"):
        killed = threading.Thread(target=lambda: lost(gateway))
        killed.start()
        until(lambda: demo.tally()["open"] == 1)
        workers = gateway.worker_pids()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        killed.join(30)
    until(lambda: len(set(gateway.worker_pids()) - set(workers)) == 2)
    until(lambda: gateway.scrape().total("nexus_requests_lost_total") == 1)


def lost(gateway: Gateway) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        send(gateway, chat())


def shown(gateway: Gateway) -> dict[str, str]:
    """Every page, every command's output, and every file, by name."""
    outputs: dict[str, str] = {}
    paths = ("/", "/metrics", "/v1/stats", "/v1/history", "/health", "/v1/problems", "/admin/keys")
    for port in (gateway.port, gateway.operations_port):
        for path in paths:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
                headers = {"authorization": "Bearer token-of-the-operators"}
                connection.request("GET", path, headers=headers)
                outputs[f"{port}{path}"] = connection.getresponse().read().decode()
    outputs["nexus history"] = command(gateway, "history", "--json")
    for file in gateway.directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if file.is_file():
                name = str(file.relative_to(gateway.directory))
                outputs[name] = file.read_bytes().decode("latin-1")
    return outputs
