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


PARTS = {"message": ("output_text", "refusal"), "reasoning": ("reasoning_text",)}
STATES = {"created": "before", "in_progress": "created"}


class ResponsesGrammar:
    """Checks each event of a stream of the Responses API.

    Attributes:
        state: `before`, `created`, `open`, `item`, `part`, `said` (after the whole of a part),
            `end`, or `error`.
        items: The items that are complete.
        response: What the last event has.
    """

    def __init__(self) -> None:
        self.state = "before"
        self.number = 0
        self.items: list[dict[str, Any]] = []
        self.item: dict[str, Any] = {}
        self.part: dict[str, Any] = {}
        self.said = ""
        self.response: dict[str, Any] = {}
        self.error: dict[str, Any] | None = None

    def feed(self, event: bytes) -> None:
        kind, data = re.fullmatch(rb"event: ([\w.]+)\ndata: (\{.*\})\n\n", event).groups()
        fields = json.loads(data)
        assert fields["type"] == kind.decode()
        assert self.state not in ("end", "error"), f"{kind} after the end"
        assert fields["sequence_number"] == self.number
        self.number += 1
        if kind == b"error":
            self.state, self.error = "error", fields
            return
        name = fields["type"].removeprefix("response.")
        if name in ("completed", "incomplete"):
            self._end(name, fields["response"])
        elif name in STATES:
            assert self.state == STATES[name]
            assert (fields["response"]["status"], fields["response"]["output"]) == (
                "in_progress",
                [],
            )
            self.state = "created" if name == "created" else "open"
        else:
            assert fields["output_index"] == len(self.items)
            assert fields.get("item_id", fields.get("item", {}).get("id")) == (
                self.item["id"] if self.item else fields["item"]["id"]
            )
            getattr(self, "_" + name.replace(".", "_"), self._of_part)(name, fields)

    def _output_item_added(self, _: str, fields: dict[str, Any]) -> None:
        assert self.state == "open"
        self.state, self.item, self.said = "item", fields["item"], ""
        assert self.item["status"] == "in_progress"
        assert self.item.get("content", []) == []
        assert self.item.get("arguments", "") == ""

    def _content_part_added(self, _: str, fields: dict[str, Any]) -> None:
        assert (self.state, fields["content_index"]) == ("item", 0)
        self.state, self.part = "part", fields["part"]
        assert self.part["type"] in PARTS[self.item["type"]]

    def _of_part(self, name: str, fields: dict[str, Any]) -> None:
        what, _, step = name.partition(".")
        call = what == "function_call_arguments"
        assert self.state == ("item" if call else "part")
        assert what == (self.part["type"] if not call else what)
        assert call == (self.item["type"] == "function_call")
        if step == "delta":
            self.said += fields["delta"]
            return
        assert step == "done"
        field = "arguments" if call else "refusal" if what == "refusal" else "text"
        assert fields[field] == self.said
        self.state = "said"

    def _content_part_done(self, _: str, fields: dict[str, Any]) -> None:
        assert self.state == "said"
        field = "refusal" if self.part["type"] == "refusal" else "text"
        assert fields["part"] == self.part | {field: self.said}
        self.state, self.part = "part_done", fields["part"]

    def _output_item_done(self, _: str, fields: dict[str, Any]) -> None:
        call = self.item["type"] == "function_call"
        assert self.state == ("said" if call else "part_done")
        done = {"arguments": self.said} if call else {"content": [self.part]}
        assert fields["item"] == self.item | done | {"status": fields["item"]["status"]}
        self.items.append(fields["item"])
        self.state, self.item = "open", {}

    def _end(self, status: str, response: dict[str, Any]) -> None:
        assert self.state == "open"
        assert (response["status"], response["output"]) == (status, self.items)
        self.state, self.response = "end", response


def check_responses(shown: bytes) -> ResponsesGrammar:
    """What a stream says, which must follow the grammar as far as it goes."""
    grammar = ResponsesGrammar()
    for event in re.findall(rb".*?\n\n", shown, re.DOTALL):
        if not event.startswith(b":"):
            grammar.feed(event)
    return grammar
