"""Translates the items of a conversation into the messages of a chat completion.

Items of one answer of the model become one message of the assistant: its texts, then its calls of
tools. Results follow the message with their calls, as chat completions require, wherever the
client has put them.
"""

from __future__ import annotations

from typing import Any

from nexus.dialects.json_body import Raw
from nexus.dialects.translation.completion import content_of
from nexus.dialects.translation.raw import Fields, objects_of, text_of, type_of
from nexus.dialects.translation.responses_to_chat.tool_names import ToolNames
from nexus.dialects.translation.rules import NULL, FieldCheck, untranslatable

Message = dict[str, Any]
_ORIGINAL = Raw(b'"original"')


class _Turn:
    """A message, and the results of the tools that it calls.

    Attributes:
        images: Those in the results.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self.parts: list[Message] = []
        self.calls: list[Message] = []
        self.results: list[Message] = []
        self.images: list[Message] = []

    def messages(self) -> list[Message]:
        made: list[Message] = []
        if self.role == "system":
            texts = [part["text"] for part in self.parts]
            made = [{"role": "system", "content": "\n\n".join(texts)}]
        elif self.calls:
            content = content_of(self.parts) or None
            made = [{"role": self.role, "content": content, "tool_calls": self.calls}]
        elif self.parts or not self.results:
            made = [{"role": self.role, "content": content_of(self.parts)}]
        made += self.results
        if self.images:
            made.append({"role": "user", "content": self.images})
        return made


class Conversation:
    """Collects the turns of one conversation."""

    def __init__(self, check: FieldCheck, names: ToolNames) -> None:
        self._check, self._names = check, names
        self._turns: list[_Turn] = []
        self._calls: dict[str, _Turn] = {}

    def messages(self) -> list[Message]:
        return [message for turn in self._turns for message in turn.messages()]

    def add_system(self, text: str) -> None:
        self._last("system").parts.append({"type": "text", "text": text})

    def add_input(self, raw: Raw) -> None:
        """Add a text of the user, or all items of a list. Raises `Untranslatable`."""
        if bytes(raw)[:1] == b'"':
            turn = self._turn("user")
            turn.parts.append({"type": "text", "text": text_of(raw, "input")})
            return
        for n, item in enumerate(objects_of(raw, "input")):
            path = f"input.{n}"
            named = item.get("type", NULL) != NULL or "role" not in item
            kind = type_of(item, path) if named else "message"
            if self._check.typed("input", kind, item, path):
                getattr(self, f"_add_{kind}")(item, path)

    def _add_message(self, item: Fields, path: str) -> None:
        role = text_of(item.get("role", NULL), f"{path}.role")
        if role == "developer":
            role = "system"
        if role not in ("user", "assistant", "system"):
            raise untranslatable(f"{path}.role", "it is none of user, assistant, system, developer")
        parts = self._parts(item.get("content", NULL), f"{path}.content")
        if role == "system" and any(part["type"] != "text" for part in parts):
            raise untranslatable(f"{path}.content", "a system message has only texts")
        turn = self._turn(role) if role == "user" else self._last(role)
        turn.parts += parts

    def _add_function_call(self, item: Fields, path: str) -> None:
        call_id = text_of(item.get("call_id", NULL), f"{path}.call_id")
        namespace, name = item.get("namespace", NULL), item.get("name", NULL)
        given = self._names.of(
            "" if namespace == NULL else text_of(namespace, f"{path}.namespace"),
            text_of(name, f"{path}.name"),
        )
        function = {"name": given, "arguments": item.get("arguments", "{}")}
        turn = self._last("assistant")
        turn.calls.append({"id": call_id, "type": "function", "function": function})
        self._calls[call_id] = turn

    def _add_function_call_output(self, item: Fields, path: str) -> None:
        call_id = text_of(item.get("call_id", NULL), f"{path}.call_id")
        parts = self._parts(item.get("output", NULL), f"{path}.output")
        turn = self._calls.get(call_id) or self._turn("tool")
        text = "\n\n".join(part["text"] for part in parts if part["type"] == "text")
        turn.results.append({"role": "tool", "tool_call_id": call_id, "content": text})
        turn.images += [part for part in parts if part["type"] != "text"]

    def _turn(self, role: str) -> _Turn:
        self._turns.append(_Turn(role))
        return self._turns[-1]

    def _last(self, role: str) -> _Turn:
        """The last turn, if it has this role and no results; else a new one."""
        last = self._turns[-1] if self._turns else None
        return last if last and last.role == role and not last.results else self._turn(role)

    def _parts(self, raw: Raw, path: str) -> list[Message]:
        if bytes(raw)[:1] == b'"':
            return [{"type": "text", "text": text_of(raw, path)}]
        parts = []
        for n, block in enumerate(objects_of(raw, path)):
            where = f"{path}.{n}"
            kind = type_of(block, where)
            self._check.typed("content", kind, block, where)
            if kind == "input_image":
                parts.append(_image(self._check, block, where))
            else:
                field = "refusal" if kind == "refusal" else "text"
                text = text_of(block.get(field, NULL), f"{where}.{field}")
                parts.append({"type": "text", "text": text})
        return parts


def _image(check: FieldCheck, block: Fields, path: str) -> Message:
    image: Message = {"url": text_of(block.get("image_url", NULL), f"{path}.image_url")}
    if (detail := block.get("detail", NULL)) == _ORIGINAL:
        check.drop("content.input_image.detail")
    elif detail != NULL:
        image["detail"] = detail
    return {"type": "image_url", "image_url": image}
