"""Takes the stream of a chat completion apart into blocks: texts, reasoning, calls of tools.

Clients of other protocols get one block at a time. What comes for a later block while the first is
incomplete is held back, so that calls of tools whose pieces interleave arrive in order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import msgspec

from nexus.dialects.base import Usage
from nexus.dialects.lenient_json import UNREADABLE
from nexus.dialects.translation.completion import (
    Call,
    Choice,
    Completion,
    Function,
    Text,
    arguments_in,
    call_id,
    decode,
    reasoning_of,
    text_in,
    text_of,
)

Kind = Literal["text", "thinking", "refusal", "tool_use"]


class Block:
    """A block of what the model says.

    Attributes:
        held: Pieces that the client has not got.
        said: All pieces of a tool's arguments.
        started: The client has got its start.
        wanted_back: It is reasoning that its server may want back.
    """

    __slots__ = ("held", "id", "kind", "name", "said", "started", "wanted_back")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.id = self.name = ""
        self.held: list[str] = []
        self.said: list[str] = []
        self.started = self.wanted_back = False

    @property
    def complete(self) -> bool:
        """Whether nothing can follow once another block has started."""
        if self.kind != "tool_use":
            return True
        if not self.said or not self.said[-1].rstrip().endswith("}"):
            return False
        try:
            msgspec.json.decode("".join(self.said))
        except UNREADABLE:
            return False
        return True


class BlockEvents(ABC):
    """An `EventTranslator` but for how the client's events look.

    Attributes:
        number: How many events the client has got, in a protocol that numbers them.
    """

    number = 0

    def __init__(self) -> None:
        self._started = False
        self._id = ""
        self._index = 0
        """The index of the first block."""
        self._blocks: list[Block] = []
        self._text: Block | None = None
        """The only block, if it is a text that the client has got in part."""
        self._calls: dict[object, Block] = {}
        self._call_count = 0
        self._called = False
        self._finish: object = None
        self._sequence: object = None
        self._refused = False

    @abstractmethod
    def _start(self, first: Completion) -> bytes:
        """The events before the first block."""

    @abstractmethod
    def _block_start(self, block: Block) -> bytes: ...

    @abstractmethod
    def _piece(self, piece: str) -> bytes:
        """The event for a piece of the block that was started last."""

    @abstractmethod
    def _block_end(self, block: Block) -> bytes: ...

    @abstractmethod
    def _finish_events(self, usage: Usage | None) -> bytes:
        """The events after the last block."""

    def event(self, data: bytes) -> bytes:
        try:
            chunk = decode(data)
        except UNREADABLE:
            return b""
        choices = chunk.choices
        if choices is None:
            return b""
        if self._text is not None and len(choices) == 1 and (text := _only_text(choices[0])):
            return self._piece(text)
        shown = b"" if self._started else self._begin(chunk)
        for choice in choices:
            if choice.index in (0, None):
                self._read(choice)
        return shown + self._ready() if self._blocks else shown

    def end(self, usage: Usage | None) -> bytes:
        shown = b"" if self._started else self._begin(Completion())
        shown += b"".join([self._close(block) for block in self._blocks])
        self._blocks = []
        return shown + self._finish_events(usage)

    def _begin(self, first: Completion) -> bytes:
        self._started, self._id = True, text_in(first.id)
        return self._start(first)

    def _read(self, choice: Choice) -> None:
        if choice.finish_reason:
            self._finish, self._sequence = choice.finish_reason, choice.stop_reason
        if (said := choice.delta) is None:
            return
        self._add_texts(said)
        for n, call in enumerate(said.tool_calls or ()):
            self._add_call(call, n)

    def _add_texts(self, said: Text) -> None:
        if text := reasoning_of(said):
            self._add("thinking", text)
            self._blocks[-1].wanted_back = said.reasoning_content == text
        if text := text_of(said):
            self._add("text", text)
        if text := text_in(said.refusal):
            self._refused = True
            self._add("refusal", text)

    def _add(self, kind: Kind, text: str) -> None:
        blocks = self._blocks
        if not blocks or blocks[-1].kind != kind:
            blocks.append(Block(kind))
        blocks[-1].held.append(text)

    def _add_call(self, call: Call, n: int) -> None:
        function = call.function or Function()
        key = n if call.index is None else call.index
        block, given, name = self._calls.get(key), text_in(call.id), text_in(function.name)
        if block is None or (given and name and block.id != given and block.name):
            # Some servers give each of several calls the index 0.
            block = self._calls[key] = Block("tool_use")
            block.id = call_id(given, self._id, self._call_count)
            self._call_count += 1
            self._blocks.append(block)
        block.name = block.name or name
        if piece := arguments_in(function.arguments):
            block.held.append(piece)
            block.said.append(piece)

    def _ready(self) -> bytes:
        """What the client can have now: the first block, and those after complete ones."""
        blocks, shown = self._blocks, b""
        while len(blocks) > 1 and blocks[0].complete:
            shown += self._close(blocks.pop(0))
        first = blocks[0]
        self._text = first if first.kind == "text" and len(blocks) == 1 else None
        return shown + self._show(first) if first.name or first.kind != "tool_use" else shown

    def _show(self, block: Block) -> bytes:
        shown = b""
        if not block.started:
            block.started = True
            shown = self._block_start(block)
        for piece in block.held:
            shown += self._piece(piece)
        block.held.clear()
        return shown

    def _close(self, block: Block) -> bytes:
        if block.kind == "tool_use" and not block.name:
            return b""  # no client can run it
        self._called = self._called or block.kind == "tool_use"
        shown = self._show(block) + self._block_end(block)
        self._index += 1
        return shown


def _only_text(choice: Choice) -> str | None:
    """The text that a choice has, if it has nothing else: nearly every chunk is so."""
    said = choice.delta
    if (
        said is None
        or type(text := said.content) is not str
        or choice.finish_reason is not None
        or choice.index
        or said.tool_calls
        or said.reasoning_content
        or said.reasoning
        or said.refusal
    ):
        return None
    return text
