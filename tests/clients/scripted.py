"""A backend that has an agent write a file, and then says that it is done.

It speaks Anthropic's messages, OpenAI's responses, and chat completions, as streams, and keeps what
it was asked.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "scripted"
FILE, CONTENT = "made.txt", "made by an agent"
_MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 200_000}]}
_RESULTS = b'"tool_result"', b'call_output"', b'"role":"tool"'


class Asked:
    """One request."""

    def __init__(self, target: str, headers: dict[str, str], body: bytes) -> None:
        self.target, self.headers, self.raw = target, headers, body
        self.body: dict[str, Any] = json.loads(body)

    @property
    def has_result(self) -> bool:
        """Whether the agent tells what a tool said."""
        return any(mark in self.raw for mark in _RESULTS)


class ScriptedBackend:
    """Attributes: `asked` has all requests in their order."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send("application/json", json.dumps(_MODELS).encode())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if body == b"{}":  # a probe that asks which paths there are
                    self.send_response(400)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.path, headers, body)
                path = self.path.partition("?")[0]
                if path.endswith("/count_tokens"):
                    self._send("application/json", b'{"input_tokens": 1000}')
                    return
                backend.asked.append(asked)
                self._send("text/event-stream", _WRITERS[path](asked))

            def _send(self, kind: str, content: bytes) -> None:
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> "ScriptedBackend":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _encoded(events: list[dict[str, Any]]) -> bytes:
    return b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events
    )


def message_events(asked: Asked) -> bytes:
    """A call of the tool `Write` with the next block of text; the end once it was called."""
    usage = {"input_tokens": 100, "output_tokens": 1, "cache_read_input_tokens": 20}
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": usage,
    }  # fmt: skip
    if "Write" in _tools(asked) and not asked.has_result:
        stop, block = (
            "tool_use",
            {"type": "tool_use", "id": "toolu_1", "name": "Write", "input": {}},
        )
        delta = {"type": "input_json_delta", "partial_json": json.dumps(_write_input(asked))}
    else:
        stop, block = "end_turn", {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": "Done."}
    events = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None},
         "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]  # fmt: skip
    return _encoded(events)


def response_events(asked: Asked) -> bytes:
    """A call of the shell; the end once it was called."""
    name = _shell(asked)
    item: dict[str, Any]
    if name is not None and not asked.has_result:
        given = _shell_input(name)
        item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": name,
                "arguments": json.dumps(given), "status": "completed"}  # fmt: skip
        kind, delta = "function_call_arguments", json.dumps(given)
    else:
        text = {"type": "output_text", "text": "Done.", "annotations": []}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": [text]}  # fmt: skip
        kind, delta = "output_text", "Done."
    response = {"id": f"resp_{len(asked.raw)}", "object": "response", "model": MODEL,
                "status": "in_progress", "output": []}  # fmt: skip
    usage = {
        "input_tokens": 100, "input_tokens_details": {"cached_tokens": 20}, "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 107,
    }  # fmt: skip
    done = response | {"status": "completed", "output": [item], "usage": usage}
    place = {"output_index": 0, "item_id": item["id"], "content_index": 0}
    events = [
        {"type": "response.created", "response": response},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": f"response.{kind}.delta", **place, "delta": delta},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": done},
    ]
    return _encoded([event | {"sequence_number": n} for n, event in enumerate(events)])


def chat_events(asked: Asked) -> bytes:
    """A call of `Write` or of the shell in two pieces; the end once it was called."""
    name = "Write" if "Write" in _tools(asked) else _shell(asked)
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    finish = "stop"
    if name is not None and not asked.has_result:
        finish = "tool_calls"
        given = json.dumps(_write_input(asked) if name == "Write" else _shell_input(name))
        function = {"name": name, "arguments": given[:9]}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        more = {"index": 0, "function": {"arguments": given[9:]}}
        deltas += [{"reasoning": "A file."}, {"tool_calls": [call]}, {"tool_calls": [more]}]
    else:
        deltas.append({"content": "Done."})
    usage = {
        "prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107,
        "prompt_tokens_details": {"cached_tokens": 20},
    }  # fmt: skip
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    events = [chunk | {"choices": [choice]} for choice in choices]
    events.append(chunk | {"choices": [], "usage": usage})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


def _tools(asked: Asked) -> list[str]:
    return [
        tool.get("name") or tool.get("function", {}).get("name")
        for tool in asked.body.get("tools") or []
    ]


def _shell(asked: Asked) -> str | None:
    """The name of Codex's shell, which differs by version and model."""
    shells = ("exec_command", "shell_command", "shell")
    return next((name for name in shells if name in _tools(asked)), None)


def _shell_input(name: str) -> dict[str, Any]:
    command = f"printf '{CONTENT}' > {FILE}"
    if name == "shell":
        return {"command": ["sh", "-c", command]}
    return {"cmd": command} if name == "exec_command" else {"command": command}


def _write_input(asked: Asked) -> dict[str, Any]:
    cwd = asked.raw.decode().partition("working directory: ")[2].partition("\\n")[0]
    return {"file_path": f"{cwd}/{FILE}", "content": CONTENT}


_WRITERS = {
    "/v1/messages": message_events,
    "/v1/responses": response_events,
    "/v1/chat/completions": chat_events,
}
