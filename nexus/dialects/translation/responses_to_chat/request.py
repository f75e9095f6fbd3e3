"""Translates a request for a response into one for a chat completion."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from nexus.dialects.json_body import Raw
from nexus.dialects.translation.completion import sign_calls
from nexus.dialects.translation.raw import (
    Fields,
    at_most,
    fields_of,
    object_of,
    objects_of,
    text_of,
    type_of,
)
from nexus.dialects.translation.responses_to_chat.conversation import Conversation
from nexus.dialects.translation.responses_to_chat.fields import RULES
from nexus.dialects.translation.responses_to_chat.tool_names import ToolNames
from nexus.dialects.translation.rules import NULL, FieldCheck, NotStored, untranslatable
from nexus.dialects.translation.translation import ClientContext, Receiver, TranslatedRequest

_SAME = ("model", "temperature", "top_p", "stream")
"""Fields that have the same name and meaning in both protocols."""
_ONLY = {"background": b"false", "store": b"false", "top_logprobs": b"0"}
_CHOICES = ("auto", "required", "none")
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}
_REPEATED = {
    "parallel_tool_calls": Raw(b"true"),
    "tool_choice": Raw(b'"auto"'),
    "tools": Raw(b"[]"),
}
"""Fields that every response repeats, with their defaults."""
_REPEATED_IF_GIVEN = (
    "instructions", "max_output_tokens", "metadata", "reasoning", "temperature", "text", "top_p",
)  # fmt: skip


def translate_request(body: bytes, receiver: Receiver) -> TranslatedRequest:
    """The request for a chat completion. Raises `Untranslatable`."""
    takes = receiver.takes
    fields = fields_of(body)
    check = FieldCheck(RULES)
    check.fields(fields)
    _check_values(fields)
    names = ToolNames()
    tools = list(_tools(check, names, fields.get("tools", Raw(b"[]"))))
    request: dict[str, Any] = {name: fields[name] for name in _SAME if name in fields}
    conversation = Conversation(check, names)
    if "instructions" in fields:
        conversation.add_system(text_of(fields["instructions"], "instructions"))
    conversation.add_input(fields["input"])
    request["messages"] = conversation.messages()
    if "thought_signature" in takes:
        sign_calls(request["messages"], text_of(fields["model"], "model"))
    if "max_output_tokens" in fields:
        newer = "max_completion_tokens" in takes
        request["max_completion_tokens" if newer else "max_tokens"] = at_most(
            fields["max_output_tokens"], receiver.max_output_tokens, "max_output_tokens"
        )
    if tools:
        request["tools"] = tools
        request |= _tool_choice(check, names, fields)
    request |= _reasoning(check, fields.get("reasoning", Raw(b"{}")), takes)
    request |= _text(check, fields.get("text", Raw(b"{}")))
    repeated = _REPEATED | {
        name: fields[name] for name in (*_REPEATED, *_REPEATED_IF_GIVEN) if name in fields
    }
    context = ClientContext(msgspec.json.encode(repeated)[1:-1], names.originals)
    return TranslatedRequest(msgspec.json.encode(request), check.dropped, context)


def _check_values(fields: Fields) -> None:
    for name, only in _ONLY.items():
        if bytes(fields.get(name, only)) != only:
            message = f"`{name}` must be {only.decode()} for a backend that speaks another API"
            if name == "top_logprobs":
                raise untranslatable(name, "there are no log probabilities there")
            raise NotStored(f"{message}: nothing is stored here.", param=name)
    if "input" not in fields:
        raise untranslatable("input", "it is missing")


def _tools(check: FieldCheck, names: ToolNames, raw: Raw) -> Iterator[dict[str, Any]]:
    for n, tool in enumerate(objects_of(raw, "tools")):
        path = f"tools.{n}"
        kind = type_of(tool, path)
        if not check.typed("tools", kind, tool, path):
            continue
        if kind == "function":
            yield _function(names, "", tool, path)
            continue
        namespace = text_of(tool.get("name", NULL), f"{path}.name")
        for m, inner in enumerate(objects_of(tool.get("tools", NULL), f"{path}.tools")):
            within = f"{path}.tools.{m}"
            if (kind := type_of(inner, within)) != "function":
                raise untranslatable(within, f"{RULES['tools.*'].note} ({kind})")
            check.typed("tools", kind, inner, within)
            yield _function(names, namespace, inner, within)


def _function(names: ToolNames, namespace: str, tool: Fields, path: str) -> dict[str, Any]:
    name = names.add(namespace, text_of(tool.get("name", NULL), f"{path}.name"))
    function: dict[str, Any] = {"name": name}
    for field in ("description", "parameters"):
        if tool.get(field, NULL) != NULL:
            function[field] = tool[field]
    if bytes(tool.get("strict", NULL)) == b"true":
        function["strict"] = True
    return {"type": "function", "function": function}


def _tool_choice(check: FieldCheck, names: ToolNames, fields: Fields) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if bytes(fields.get("parallel_tool_calls", b"")) == b"false":
        made["parallel_tool_calls"] = False
    raw = fields.get("tool_choice", NULL)
    if raw == NULL:
        return made
    if bytes(raw)[:1] == b'"':
        if (kind := text_of(raw, "tool_choice")) not in _CHOICES:
            raise untranslatable("tool_choice", RULES["tool_choice.*"].note)
        return made | {"tool_choice": kind}
    choice = object_of(raw, "tool_choice")
    check.typed("tool_choice", type_of(choice, "tool_choice"), choice, "tool_choice")
    name = names.of("", text_of(choice.get("name", NULL), "tool_choice.name"))
    return made | {"tool_choice": {"type": "function", "function": {"name": name}}}


def _reasoning(check: FieldCheck, raw: Raw, takes: Collection[str]) -> dict[str, Any]:
    fields = object_of(raw, "reasoning")
    check.fields(fields, "reasoning.", "reasoning.")
    if fields.get("effort", NULL) == NULL:
        return {}
    effort = _EFFORTS.get(text_of(fields["effort"], "reasoning.effort"))
    if effort and "reasoning_effort" in takes:
        return {"reasoning_effort": effort}
    check.drop("reasoning.effort")
    return {}


def _text(check: FieldCheck, raw: Raw) -> dict[str, Any]:
    fields = object_of(raw, "text")
    check.fields(fields, "text.", "text.")
    if fields.get("format", NULL) == NULL:
        return {}
    form = object_of(fields["format"], "text.format")
    kind = type_of(form, "text.format")
    check.typed("text.format", kind, form, "text.format")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": kind}}
    schema = {name: value for name, value in form.items() if name != "type" and value != NULL}
    return {"response_format": {"type": kind, "json_schema": schema}}
