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
