"""Translates a request for a message into one for a chat completion."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from nexus.dialects.anthropic.unsigned import signature
from nexus.dialects.json_body import Raw
from nexus.dialects.translation.completion import content_of, sign_calls
from nexus.dialects.translation.messages_to_chat.fields import RULES
from nexus.dialects.translation.raw import (
    Fields,
    at_most,
    fields_of,
    number_of,
    object_of,
    objects_of,
    text_of,
    type_of,
)
from nexus.dialects.translation.rules import EMPTY, NULL, FieldCheck, untranslatable
from nexus.dialects.translation.translation import ClientContext, Receiver, TranslatedRequest

ATTRIBUTION = "x-anthropic-billing-header:"
"""Claude Code begins a system text with it, in which it counts its requests."""
_SAME = ("model", "temperature", "top_p", "stream")
"""Fields that have the same name and meaning in both protocols."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_BUDGETS = ((4096, "low"), (16384, "medium"))
"""The tokens that thinking may take, and the effort that fewer stand for."""


def translate_request(body: bytes, receiver: Receiver) -> TranslatedRequest:
    """The request for a chat completion. Raises `Untranslatable`."""
    takes = receiver.takes
    fields = fields_of(body)
    check = FieldCheck(RULES)
    check.fields(fields)
    request: dict[str, Any] = {name: fields[name] for name in _SAME if name in fields}
    model = text_of(fields.get("model", EMPTY), "model")
    request["messages"] = [
        *_system(check, fields.get("system")),
        *_results_first(_messages(check, fields["messages"], signature(model))),
    ]
    if "thought_signature" in takes:
        sign_calls(request["messages"], model)
    if "max_tokens" in fields:
        newer = "max_completion_tokens" in takes
        request["max_completion_tokens" if newer else "max_tokens"] = at_most(
            fields["max_tokens"], receiver.max_output_tokens, "max_tokens"
        )
    if "top_k" in fields:
        if "top_k" in takes:
            request["top_k"] = fields["top_k"]
        else:
            check.drop("top_k")
    if "stop_sequences" in fields:
        request["stop"] = fields["stop_sequences"]
    if tools := [
        _tool(check, tool, n)
        for n, tool in enumerate(objects_of(fields.get("tools", Raw(b"[]")), "tools"))
    ]:
        request["tools"] = tools
    if "tool_choice" in fields:
        request |= _tool_choice(check, fields["tool_choice"], with_tools=bool(tools))
    output = (
        object_of(fields["output_config"], "output_config") if "output_config" in fields else {}
    )
    check.fields(output, "output_config.", "output_config.")
    request |= _reasoning_effort(check, fields, output, takes)
    form = output.get("format", fields.get("output_format", NULL))
    if form != NULL:
        request["response_format"] = _response_format(form)
    context = ClientContext(model=model)
    return TranslatedRequest(msgspec.json.encode(request), check.dropped, context)


def _reasoning_effort(
    check: FieldCheck, fields: Fields, output: Fields, takes: Collection[str]
) -> dict[str, str]:
    """The effort that is stated, else what the budget of thinking stands for."""
    effort = _EFFORTS.get(text_of(output.get("effort", EMPTY), "output_config.effort"))
    budget = None
    if "thinking" in fields:
        thinking = object_of(fields["thinking"], "thinking")
        if "display" in thinking:
            check.drop("thinking.display")
        if type_of(thinking, "thinking") == "enabled":
            budget = number_of(thinking.get("budget_tokens", NULL), "thinking.budget_tokens")
    takes_effort = "reasoning_effort" in takes
    if "effort" in output and not (effort and takes_effort):
        check.drop("output_config.effort")
    if "thinking" in fields and (effort or budget is None or not takes_effort):
        check.drop("thinking")
    if not effort and budget is not None:
        effort = next((name for most, name in _BUDGETS if budget < most), "high")
    return {"reasoning_effort": effort} if effort and takes_effort else {}


def _system(check: FieldCheck, raw: Raw | None) -> Iterator[dict[str, Any]]:
    """The system message; none without a text."""
    texts = [] if raw is None else list(_system_texts(check, raw, "system"))
    if texts:
        yield {"role": "system", "content": "\n\n".join(texts)}


def _system_texts(check: FieldCheck, raw: Raw, path: str) -> Iterator[str]:
    if bytes(raw)[:1] == b'"':
        yield text_of(raw, path)
        return
    for n, block in enumerate(objects_of(raw, path)):
        kind = type_of(block, f"{path}.{n}")
        check.typed("system", kind, block, f"{path}.{n}")
        text = text_of(block.get("text", NULL), f"{path}.{n}.text")
        if not text.startswith(ATTRIBUTION):
            yield text


def _results_first(messages: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The results of tools directly after their calls, also those of several turns of the user."""
    called, waiting = False, list[dict[str, Any]]()
    for message in messages:
        if called and message["role"] == "user":
            waiting.append(message)
            continue
        if message["role"] != "tool":
            yield from waiting
            waiting.clear()
            called = "tool_calls" in message
        yield message
    yield from waiting


def _messages(check: FieldCheck, raw: Raw, wanted: str) -> Iterator[dict[str, Any]]:
    for n, message in enumerate(objects_of(raw, "messages")):
        path = f"messages.{n}"
        check.fields(message, "messages.", f"{path}.")
        role, content = text_of(message.get("role", NULL), f"{path}.role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise untranslatable(f"{path}.role", "it is none of user, assistant, system")
        if content is None or content == NULL:
            raise untranslatable(f"{path}.content", "it is missing")
        if role == "system":
            text = "\n\n".join(_system_texts(check, content, f"{path}.content"))
            yield {"role": "system", "content": text}
        elif bytes(content)[:1] == b'"':
            yield {"role": role, "content": content}
        elif role == "assistant":
            blocks = objects_of(content, f"{path}.content")
            yield _assistant(check, blocks, f"{path}.content", wanted)
        else:
            yield from _user(check, objects_of(content, f"{path}.content"), f"{path}.content")


def _assistant(check: FieldCheck, blocks: list[Fields], path: str, wanted: str) -> dict[str, Any]:
    """`wanted`: the signature of the thinking that goes back to the model."""
    parts, calls, thoughts = [], [], []
    for n, block in enumerate(blocks):
        signed = block.get("signature", NULL)
        if signed != NULL and text_of(signed, f"{path}.{n}.signature") == wanted:
            thoughts.append(text_of(block.get("thinking", NULL), f"{path}.{n}.thinking"))
            continue
        kind = _checked_kind(check, block, f"{path}.{n}")
        if kind == "text":
            parts.append({"type": "text", "text": block.get("text", "")})
        elif kind == "tool_use":
            arguments = bytes(block.get("input", b"{}")).decode(errors="replace")
            function = {"name": block.get("name"), "arguments": arguments}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):
            raise untranslatable(f"{path}.{n}", f"the assistant's message has {kind!r}")
    message: dict[str, Any] = {"role": "assistant", "content": content_of(parts)}
    if thoughts:
        message["reasoning_content"] = "\n\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
        message["content"] = message["content"] or None
    return message


def _user(check: FieldCheck, blocks: list[Fields], path: str) -> Iterator[dict[str, Any]]:
    """Results of tools become messages of their own, which must come first."""
    parts: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for n, block in enumerate(blocks):
        kind = _checked_kind(check, block, f"{path}.{n}")
        if kind == "text":
            parts.append({"type": "text", "text": block.get("text", "")})
        elif kind == "image":
            parts.append(_image(block, f"{path}.{n}"))
        elif kind == "tool_result":
            texts, shown = _result(check, block.get("content", NULL), f"{path}.{n}.content")
            images += shown
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": texts}
        else:
            raise untranslatable(f"{path}.{n}", f"the user's message has {kind!r}")
    if parts := images + parts:
        yield {"role": "user", "content": content_of(parts)}


def _result(check: FieldCheck, raw: Raw, path: str) -> tuple[str, list[dict[str, Any]]]:
    """The texts of a tool's result, and its images."""
    if raw == NULL:
        return "", []
    if bytes(raw)[:1] == b'"':
        return text_of(raw, path), []
    texts: list[str] = []
    images: list[dict[str, Any]] = []
    for n, block in enumerate(objects_of(raw, path)):
        kind = _checked_kind(check, block, f"{path}.{n}")
        if kind == "text":
            texts.append(text_of(block.get("text", NULL), f"{path}.{n}.text"))
        elif kind == "image":
            images.append(_image(block, f"{path}.{n}"))
        else:
            raise untranslatable(f"{path}.{n}", f"the result of a tool has {kind!r}")
    return "\n\n".join(texts), images


def _image(block: Fields, path: str) -> dict[str, Any]:
    source = object_of(block.get("source", NULL), f"{path}.source")
    kind = type_of(source, f"{path}.source")
    if kind == "base64":
        media_type = text_of(source.get("media_type", NULL), f"{path}.source.media_type")
        url = f"data:{media_type};base64,{text_of(source.get('data', NULL), f'{path}.source.data')}"
    elif kind == "url":
        url = text_of(source.get("url", NULL), f"{path}.source.url")
    else:
        raise untranslatable(f"{path}.source", f"an image from {kind!r} is stored elsewhere")
    return {"type": "image_url", "image_url": {"url": url}}


def _tool(check: FieldCheck, tool: Fields, n: int) -> dict[str, Any]:
    kind = type_of(tool, f"tools.{n}") if tool.get("type", NULL) != NULL else "custom"
    check.typed("tools", kind, tool, f"tools.{n}")
    function = {"name": tool.get("name")}
    for name, source in (
        ("description", "description"),
        ("parameters", "input_schema"),
        ("strict", "strict"),
    ):
        if tool.get(source, NULL) != NULL:
            function[name] = tool[source]
    return {"type": "function", "function": function}


def _tool_choice(check: FieldCheck, raw: Raw, *, with_tools: bool) -> dict[str, Any]:
    choice = object_of(raw, "tool_choice")
    kind = type_of(choice, "tool_choice")
    check.typed("tool_choice", kind, choice, "tool_choice")
    if not with_tools:  # servers refuse a choice between no tools
        return {}
    made: dict[str, Any] = {"tool_choice": _CHOICES.get(kind)}
    if kind == "tool":
        made = {"tool_choice": {"type": "function", "function": {"name": choice.get("name")}}}
    if bytes(choice.get("disable_parallel_tool_use", b"")) == b"true":
        made["parallel_tool_calls"] = False
    return made


def _response_format(raw: Raw) -> dict[str, Any]:
    form = object_of(raw, "output_config.format")
    if (kind := type_of(form, "output_config.format")) != "json_schema":
        raise untranslatable("output_config.format", f"chat completions have no form {kind!r}")
    schema = {"name": "response", "schema": form.get("schema"), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _checked_kind(check: FieldCheck, block: Fields, path: str) -> str:
    kind = type_of(block, path)
    check.typed("content", kind, block, path)
    return kind
