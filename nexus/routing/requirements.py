"""What a request asks of a model, read from the few fields of its body that say so."""

from __future__ import annotations

from typing import Any

import msgspec

CHARACTERS_PER_TOKEN = 4
"""How a prompt's length in tokens is estimated before it is sent (the original's rule)."""


class InvalidBody(Exception):
    """The body is not a request that any backend could answer; `param` names the field, as OpenAI's errors do."""

    def __init__(self, message: str, *, param: str | None = None, json: bool = True) -> None:
        super().__init__(message)
        self.param = param
        self.json = json


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """What the model must be able to do; `context` in estimated tokens."""

    vision: bool = False
    tools: bool = False
    json_mode: bool = False
    context: int = 0


ANYTHING = Requirements()


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request as far as routing reads it."""

    model: str
    stream: bool = False
    needs: Requirements = Requirements()


_NULL = msgspec.Raw(b"null")


class _Format(msgspec.Struct):
    type: Any = None


class _Message(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw(b"null")


class _Part(msgspec.Struct):
    type: Any = None
    text: msgspec.Raw = msgspec.Raw(b"")


class _Body(msgspec.Struct):
    model: Any = msgspec.UNSET
    stream: Any = None
    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    tools: msgspec.Raw = _NULL
    response_format: msgspec.Raw = _NULL


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_parts = msgspec.json.Decoder(list[_Part]).decode
_decode_format = msgspec.json.Decoder(_Format).decode
_NOTHING = (b"", b"null", b"[]", b'""')


def read(body: bytes, required: str) -> Ask:
    """Read a body whose content is under `required` (`messages`, `prompt` or `input`).

    Everything else is left to the backend. Raises `InvalidBody`.
    """
    try:
        if not body.isascii():
            body.decode()  # what is skipped below is not looked at there, and would be found when it is written anew
        fields = _decode_body(body)
    except msgspec.ValidationError as error:
        raise InvalidBody("The body must be a JSON object.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidBody(f"The body is not valid JSON: {error}", json=False) from error
    if fields.model is msgspec.UNSET or fields.model is None:
        raise InvalidBody("You must name a model.", param="model")
    if not isinstance(fields.model, str):
        raise InvalidBody("`model` must be a string.", param="model")
    if not fields.model:
        raise InvalidBody("`model` must not be empty.", param="model")
    if fields.stream is not None and not isinstance(fields.stream, bool):
        raise InvalidBody("`stream` must be true or false.", param="stream")
    content = bytes(getattr(fields, required)).strip()
    if content in (b"", b"null"):
        raise InvalidBody(f"`{required}` is missing.", param=required)
    if content in _NOTHING:
        raise InvalidBody(f"`{required}` must not be empty.", param=required)
    vision, characters = _messages(content) if required == "messages" else (False, len(content))
    return Ask(
        model=fields.model,
        stream=bool(fields.stream),
        needs=Requirements(
            vision=vision,
            tools=fields.tools is not _NULL and bytes(fields.tools).strip() not in _NOTHING,
            json_mode=fields.response_format is not _NULL and _wants_json(bytes(fields.response_format)),
            context=characters // CHARACTERS_PER_TOKEN,
        ),
    )


def _messages(content: bytes) -> tuple[bool, int]:
    """Whether a message holds an image, and how many characters of text there are."""
    try:
        messages = _decode_messages(content)
    except msgspec.DecodeError as error:
        raise InvalidBody("`messages` must be a list of objects.", param="messages") from error
    if not messages:
        raise InvalidBody("`messages` must not be empty.", param="messages")
    vision, characters = False, 0
    for message in messages:
        raw = bytes(message.content).strip()
        if raw[:1] == b"[":
            try:
                parts = _decode_parts(raw)
            except msgspec.DecodeError as error:
                raise InvalidBody("A message's `content` parts must be objects.", param="messages") from error
            vision = vision or any(part.type == "image_url" for part in parts)
            characters += sum(len(bytes(part.text)) for part in parts)
        else:
            characters += len(raw)
    return vision, characters


def _wants_json(raw: bytes) -> bool:
    if b"json_object" not in raw:
        return False
    try:
        return bool(_decode_format(raw).type == "json_object")
    except msgspec.DecodeError:
        return False


def with_model_if_object(body: bytes, model: str) -> bytes:
    """As `with_model`; what is no JSON object stays as it is, for `read` to refuse."""
    try:
        return with_model(body, model)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body


def with_model(body: bytes, model: str) -> bytes:
    """The body with `model` replaced; every other field keeps its bytes and its place."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)
