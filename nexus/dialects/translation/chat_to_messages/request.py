"""Translates a request for a chat completion into one for a message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from nexus.dialects.json_body import Raw
from nexus.dialects.lenient_json import UNREADABLE
from nexus.dialects.translation.chat_to_messages.fields import RULES
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
from nexus.dialects.translation.rules import NULL, FieldCheck, untranslatable
from nexus.dialects.translation.translation import Receiver, TranslatedRequest

_DEFAULT_MAX_TOKENS = 4096
_SAME = ("model", "top_p", "top_k", "stream")
"""Fields that have the same name and meaning in both protocols."""
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_DATA_URL = re.compile(r"data:([\w.+/-]++)(?:;(?!base64,)[\w=.-]++)*+;base64,")
_BLANK = re.compile(rb'null|"(?:\s|\\[nrt])*+"')
"""A text that says nothing: the backend refuses one of white space, too."""
_NO = (b"null", b"false")
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode


def translate_request(body: bytes, receiver: Receiver) -> TranslatedRequest:
    """The body of a request for a message. Raises `Untranslatable`."""
    fields = fields_of(body)
    check = FieldCheck(RULES)
    check.fields(fields)
    for name, only in (("n", b"1"), ("logprobs", b"false")):
        if bytes(fields.get(name, only)) != only:
            raise untranslatable(name, f"it must be {only.decode()}")
    request: dict[str, Any] = {name: fields[name] for name in _SAME if name in fields}
    most = receiver.max_output_tokens
    limit = fields.get("max_completion_tokens", fields.get("max_tokens"))
    request["max_tokens"] = (
        most or _DEFAULT_MAX_TOKENS if limit is None else at_most(limit, most, "max_tokens")
    )
    request |= _conversation(check, objects_of(fields["messages"], "messages"))
    if "temperature" in fields:
        request["temperature"] = min(1.0, number_of(fields["temperature"], "temperature"))
        if "top_p" in fields and number_of(fields["top_p"], "top_p") == 1:
            del request["top_p"]  # newer models refuse both, and 1 means nothing
    if "stop" in fields:
        stop = fields["stop"]
        request["stop_sequences"] = [stop] if bytes(stop)[:1] == b'"' else stop
    if "tools" in fields:
        tools = objects_of(fields["tools"], "tools")
        request["tools"] = [_tool(check, tool, f"tools.{n}") for n, tool in enumerate(tools)]
        request |= _tool_choice(check, fields)
    if "response_format" in fields:
        request |= _output(check, object_of(fields["response_format"], "response_format"))
    return TranslatedRequest(msgspec.json.encode(request), check.dropped)


def _conversation(check: FieldCheck, given: list[Fields]) -> dict[str, Any]:
    """The system blocks, and the turns: results of tools belong to the user's turn."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for n, message in enumerate(given):
        path = f"messages.{n}"
        check.fields(message, "messages.", f"{path}.")
        role = text_of(message.get("role", NULL), f"{path}.role")
        blocks = list(_parts(check, message.get("content", NULL), f"{path}.content"))
        if role in ("system", "developer"):
            system += blocks
            continue
        if role == "tool":
            result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id")}
            blocks = [result | {"content": blocks}]
        elif role == "assistant":
            blocks += _assistant(message, path)
        elif role != "user":
            raise untranslatable(f"{path}.role", "it is none of system, user, assistant, tool")
        if not blocks:  # the backend refuses a turn that says nothing
            continue
        turn = "assistant" if role == "assistant" else "user"
        if turns and turns[-1]["role"] == turn:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": turn, "content": blocks})
    made: dict[str, Any] = {"messages": turns}
    return made | {"system": system} if system else made


def _assistant(message: Fields, path: str) -> Iterator[dict[str, Any]]:
    if not _is_blank(message.get("refusal", NULL)):
        yield {"type": "text", "text": message["refusal"]}
    calls = message.get("tool_calls", NULL)
    for n, call in enumerate(objects_of(calls, f"{path}.tool_calls") if calls != NULL else ()):
        where = f"{path}.tool_calls.{n}"
        function = object_of(call.get("function", NULL), f"{where}.function")
        text = text_of(function.get("arguments", Raw(b'""')), f"{where}.function.arguments")
        try:
            given = Raw(text.strip().encode() or b"{}")
            _decode_object(given)
        except UNREADABLE as error:
            raise untranslatable(f"{where}.function.arguments", "they are no object") from error
        name = function.get("name")
        yield {"type": "tool_use", "id": call.get("id"), "name": name, "input": given}


def _parts(check: FieldCheck, raw: Raw, path: str) -> Iterator[dict[str, Any]]:
    """The blocks of a message. Blank texts are left out, because the backend refuses them."""
    if _is_blank(raw):
        return
    if bytes(raw)[:1] == b'"':
        yield {"type": "text", "text": raw}
        return
    for n, part in enumerate(objects_of(raw, path)):
        kind = type_of(part, f"{path}.{n}")
        check.typed("content", kind, part, f"{path}.{n}")
        if kind == "image_url":
            block = _image(check, part, f"{path}.{n}")
        else:
            text = part.get(kind, NULL)
            if _is_blank(text):
                continue
            block = {"type": "text", "text": text}
        if "cache_control" in part:
            block["cache_control"] = part["cache_control"]
        yield block


def _is_blank(text: Raw) -> bool:
    return _BLANK.fullmatch(bytes(text)) is not None


def _image(check: FieldCheck, part: Fields, path: str) -> dict[str, Any]:
    image = object_of(part.get("image_url", NULL), f"{path}.image_url")
    check.fields(image, "content.image_url.image_url.", f"{path}.image_url.")
    url = text_of(image.get("url", NULL), f"{path}.image_url.url")
    source = {"type": "url", "url": url}
    if (data := _DATA_URL.match(url)) is not None:
        source = {"type": "base64", "media_type": data[1], "data": url[data.end() :]}
    elif url.startswith("data:"):
        raise untranslatable(f"{path}.image_url.url", "it is no image in base64")
    return {"type": "image", "source": source}


def _tool(check: FieldCheck, tool: Fields, path: str) -> dict[str, Any]:
    kind = type_of(tool, path)
    check.typed("tools", kind, tool, path)
    function = object_of(tool.get("function", NULL), f"{path}.function")
    check.fields(function, "tools.function.function.", f"{path}.function.")
    schema = function.get("parameters", NULL)
    if bytes(schema) in (b"null", b"{}"):  # the backend wants a type
        schema = Raw(b'{"type":"object","properties":{}}')
    made: dict[str, Any] = {"name": function.get("name"), "input_schema": schema}
    for name in ("description", "strict"):
        if bytes(function.get(name, NULL)) not in _NO:
            made[name] = function[name]
    if "cache_control" in tool:
        made["cache_control"] = tool["cache_control"]
    return made


def _tool_choice(check: FieldCheck, fields: Fields) -> dict[str, Any]:
    raw = fields.get("tool_choice", Raw(b'"auto"'))
    choice: dict[str, Any]
    if bytes(raw)[:1] == b'"':
        kind = _CHOICES.get(text_of(raw, "tool_choice"))
        if kind is None:
            raise untranslatable("tool_choice", RULES["tool_choice.*"].note)
        choice = {"type": kind}
    else:
        given = object_of(raw, "tool_choice")
        check.typed("tool_choice", type_of(given, "tool_choice"), given, "tool_choice")
        function = object_of(given.get("function", NULL), "tool_choice.function")
        choice = {"type": "tool", "name": function.get("name")}
    if bytes(fields.get("parallel_tool_calls", b"")) == b"false" and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    elif "tool_choice" not in fields:
        return {}
    return {"tool_choice": choice}


def _output(check: FieldCheck, form: Fields) -> dict[str, Any]:
    kind = type_of(form, "response_format")
    if kind == "text":
        check.drop("response_format.text")
        return {}
    if kind != "json_schema":
        raise untranslatable("response_format", f"{RULES['response_format.*'].note} ({kind})")
    schema = object_of(form.get("json_schema", NULL), "response_format.json_schema")
    check.fields(schema, "response_format.json_schema.", "response_format.json_schema.")
    return {"output_config": {"format": {"type": kind, "schema": schema.get("schema", {})}}}
