"""The grammar of Anthropic's streams as a state machine, and what a stream says."""

import json
import re
from typing import Any

DELTAS = {
    "text": {"text_delta": "text"},
    "thinking": {"thinking_delta": "thinking", "signature_delta": "signature"},
    "tool_use": {"input_json_delta": "partial_json"},
}


class MessageGrammar:
    """Checks each event of a stream; AssertionError if it may not come now.

    Attributes:
        state: `before`, `message`, `block`, `delta` (after `message_delta`), `end`, or `error`.
        blocks: What came: kind, then the texts of its deltas, joined for each field.
    """

    def __init__(self) -> None:
        self.state = "before"
        self.blocks: list[tuple[str, dict[str, str]]] = []
        self.message: dict[str, Any] = {}
        self.tools: list[dict[str, Any]] = []
        self.usage: dict[str, int] = {}
        self.stop: tuple[str, str | None] | None = None
        self.error: dict[str, Any] | None = None

    def feed(self, event: bytes) -> None:
        kind, data = re.fullmatch(rb"event: (\w+)\ndata: (\{.*\})\n\n", event).groups()
        fields = json.loads(data)
        assert fields["type"] == kind.decode()
        assert self.state not in ("end", "error"), f"{kind} after the end"
        getattr(self, f"_{fields['type']}")(fields)

    def _ping(self, _: dict[str, Any]) -> None:
        pass

    def _error(self, fields: dict[str, Any]) -> None:
        self.state, self.error = "error", fields["error"]

    def _message_start(self, fields: dict[str, Any]) -> None:
        assert self.state == "before"
        self.state, self.message = "message", fields["message"]
        assert self.message["content"] == []
        assert (self.message["type"], self.message["role"]) == ("message", "assistant")

    def _content_block_start(self, fields: dict[str, Any]) -> None:
        assert self.state == "message"
        assert fields["index"] == len(self.blocks)
        block = fields["content_block"]
        if block["type"] == "tool_use":
            assert (block["input"], bool(block["name"]), bool(block["id"])) == ({}, True, True)
            self.tools.append(block)
        self.blocks.append((block["type"], {}))
        self.state = "block"

    def _content_block_delta(self, fields: dict[str, Any]) -> None:
        assert self.state == "block"
        assert fields["index"] == len(self.blocks) - 1
        kind, texts = self.blocks[-1]
        delta = fields["delta"]
        name = DELTAS[kind][delta["type"]]
        assert "signature" not in texts, "nothing follows a signature"
        texts[name] = texts.get(name, "") + delta[name]

    def _content_block_stop(self, fields: dict[str, Any]) -> None:
        assert self.state == "block"
        assert fields["index"] == len(self.blocks) - 1
        kind, texts = self.blocks[-1]
        assert kind != "thinking" or texts["signature"]
        self.state = "message"

    def _message_delta(self, fields: dict[str, Any]) -> None:
        assert self.state == "message"
        self.state, self.usage = "delta", fields["usage"]
        self.stop = fields["delta"]["stop_reason"], fields["delta"]["stop_sequence"]

    def _message_stop(self, _: dict[str, Any]) -> None:
        assert self.state == "delta"
        self.state = "end"


def check_messages(shown: bytes) -> MessageGrammar:
    """What a stream says, which must follow the grammar as far as it goes."""
    grammar = MessageGrammar()
    for event in re.findall(rb".*?\n\n", shown, re.DOTALL):
        grammar.feed(event)
    assert shown.endswith(b"\n\n") or not shown
    return grammar


class ChatGrammar:
    """Checks each chunk of a chat completion.

    Attributes:
        state: `before`, `open`, `finished` (a finish reason came), `end`, or `error`.
        said: The texts by the name of their field, and the arguments of calls by their index.
    """

    def __init__(self) -> None:
        self.state = "before"
        self.said: dict[Any, str] = {}
        self.tools: list[dict[str, Any]] = []
        self.finish: str | None = None
        self.usage: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None

    def feed(self, event: bytes) -> None:
        assert self.state not in ("end", "error"), "an event after the end"
        data = event.removeprefix(b"data: ").removesuffix(b"\n\n")
        if data == b"[DONE]":
            assert self.state == "finished"
            self.state = "end"
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self.state, self.error = "error", chunk["error"]
            return
        assert chunk["object"] == "chat.completion.chunk"
        [choice] = chunk["choices"]
        assert choice["index"] == 0
        assert self.state != "finished", "a chunk after the finish reason"
        self._delta(choice["delta"])
        if choice["finish_reason"] is not None:
            self.state, self.finish = "finished", choice["finish_reason"]
            self.usage = chunk.get("usage")

    def _delta(self, delta: dict[str, Any]) -> None:
        if self.state == "before":
            assert delta.pop("role") == "assistant"
            self.state = "open"
        for call in delta.pop("tool_calls", ()):
            index, function = call["index"], call["function"]
            if index == len(self.tools):
                assert call["id"]
                assert function["name"]
                self.tools.append(call)
            self.said[index] = self.said.get(index, "") + function["arguments"]
        for name, text in delta.items():
            self.said[name] = self.said.get(name, "") + text


def check_chat(shown: bytes) -> ChatGrammar:
    """What a stream says, which must follow the grammar as far as it goes."""
    grammar = ChatGrammar()
    for event in re.findall(rb".*?\n\n", shown, re.DOTALL):
        if not event.startswith(b":"):
            grammar.feed(event)
    return grammar
