"""What a chat completion says, whole or in chunks, as translations from it read it, and the content
of a message that is sent for one."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.translation.rules import BadResponse

_WANTS_SIGNATURES = re.compile(r"gemini-(?:[3-9]|\d\d)")
_UNCHECKED = {"google": {"thought_signature": "skip_thought_signature_validator"}}
"""What Google documents for calls whose signature is not known."""


class Function(msgspec.Struct):
    """The function of a call, or a piece of it."""

    name: Any = None
    arguments: Any = None


class Call(msgspec.Struct):
    """A call of a tool, or a piece of it."""

    index: int | str | None = None
    id: Any = None
    function: Function | None = None


class Text(msgspec.Struct):
    """What a completion says, or a piece of it. Backends call reasoning by two names."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: list[Call] | None = None


class Choice(msgspec.Struct):
    """One of the completions; `stop_reason` is vLLM's, the text at which it stopped."""

    index: Any = 0
    message: Text | None = None
    delta: Text | None = None
    finish_reason: Any = None
    stop_reason: Any = None


class Completion(msgspec.Struct):
    """A completion, or a chunk of one."""

    id: Any = None
    model: Any = None
    created: Any = None
    choices: list[Choice] | None = None


decode = lenient(msgspec.json.Decoder(Completion).decode)


def first_choice(response: bytes) -> tuple[Completion, Choice, Text]:
    """A whole completion, its first choice, and the message of that. Raises `BadResponse`."""
    try:
        completion = decode(response)
    except UNREADABLE as error:
        raise BadResponse("it is no chat completion") from error
    choice = next((one for one in completion.choices or () if one.index in (0, None)), None)
    if choice is None or choice.message is None:
        raise BadResponse("it has no message")
    return completion, choice, choice.message


def call_id(given: Any, message_id: str, number: int) -> str:
    """The id of a call. Some servers give none, and a client needs one for the result."""
    return text_in(given) or f"call_{message_id}_{number}"


def text_in(value: Any) -> str:
    """A text; empty if it is anything else."""
    return value if isinstance(value, str) else ""


def reasoning_of(said: Text) -> str:
    """The reasoning. Mistral sends it as parts of the content, which have parts themselves."""
    given = text_in(said.reasoning_content) or text_in(said.reasoning)
    if given or not isinstance(said.content, list):
        return given
    return "".join([_joined(value) for value in _parts(said.content, "thinking")])


def text_of(said: Text) -> str:
    """The text without the reasoning."""
    return _joined(said.content)


def _joined(content: Any) -> str:
    """A text, or the texts of a list of parts."""
    if not isinstance(content, list):
        return text_in(content)
    return "".join([text_in(value) for value in _parts(content, "text")])


def _parts(content: list[Any], kind: str) -> list[Any]:
    """What the parts of a kind hold."""
    return [
        part.get(kind) for part in content if isinstance(part, dict) and part.get("type") == kind
    ]


def arguments_in(value: Any) -> str:
    """The arguments of a call, or a piece of them. Some servers send the object, not its text."""
    return (
        msgspec.json.encode(value).decode() if value and isinstance(value, dict) else text_in(value)
    )


def sign_calls(messages: list[dict[str, Any]], model: str) -> None:
    """Sign the first call of each message: Gemini refuses conversations with calls that are not
    signed since its version 3, and other protocols have no place for its own signatures."""
    if _WANTS_SIGNATURES.search(model):
        for message in messages:
            for call in message.get("tool_calls", ())[:1]:
                call["extra_content"] = _UNCHECKED


def content_of(parts: list[dict[str, Any]]) -> Any:
    """The content of a message: a single text as a text, which every server takes; else the
    parts."""
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts
