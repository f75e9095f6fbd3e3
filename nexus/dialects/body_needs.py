"""What JSON requests of all dialects ask of a model, read from the few fields that say so.

Nothing is read before a decision depends on it, and nothing is parsed item by item: the work for a
body is linear in its size, whatever it holds.
"""

from __future__ import annotations

import re
from functools import cached_property
from itertools import islice
from typing import ClassVar

import msgspec

from nexus.dialects.base import InvalidBody, ModelMissing, ParsedRequest, PromptField, RequestForm
from nexus.dialects.conversation import text_at
from nexus.dialects.json_body import Raw, read_fields

CHARACTERS_PER_TOKEN = 4
"""The estimate of a prompt's length in tokens before it is sent."""
IMAGE_TOKENS = 1000
_MOST_ITEMS = 2000
"""Items of a list that are compared to find the longest one."""


class BodyNeeds(msgspec.Struct, dict=True):
    """The needs of a body, each read when it is first asked for.

    Attributes:
        dialect: The name of the dialect that it is written in.
        IMAGE: Matches a message that a model without vision cannot take.
        BEFORE: Fields that a model reads before the prompt, in their order.
        FORMAT: The field that says which form the response has.
    """

    dialect: ClassVar[str]
    IMAGE: ClassVar[re.Pattern[bytes]]
    BEFORE: ClassVar[tuple[str, ...]]
    FORMAT: ClassVar[str] = "response_format"
    fields: dict[str, Raw]
    prompt: PromptField
    task: str
    translations: tuple[tuple[str, str], ...] = ()

    @cached_property
    def vision(self) -> bool:
        return self.prompt.messages and self.IMAGE.search(self._raw(self.prompt.name)) is not None

    @cached_property
    def tools(self) -> bool:
        return self._raw("tools") not in _NOTHING

    @cached_property
    def json_mode(self) -> bool:
        return _JSON_MODE.search(self._raw(self.FORMAT)) is not None

    @cached_property
    def context(self) -> int:
        raw = self._raw(self.prompt.name)
        tokens = _of_text(raw) if self.prompt.messages else _of_longest(raw)
        for name in self.prompt.beside:
            tokens += _of_text(self._raw(name))
        return tokens + sum(_of_text(self._raw(name)) for name in self.BEFORE)

    def text_of(self, path: str) -> str | None:
        name, *keys = path.split(".")
        return text_at(self.fields.get(name), keys)

    def pieces(self) -> list[Raw]:
        fields, prompt = self.fields, self.prompt
        found = [fields[name] for name in self.BEFORE if name in fields]
        if prompt.beside:
            found += [fields[name] for name in prompt.beside]
        found.append(fields[prompt.name])
        return found

    def _raw(self, name: str) -> bytes:
        return bytes(self.fields.get(name, b""))


# A quote within a JSON string is escaped, so these match names and values only, never a text that
# speaks of them.
_JSON_MODE = re.compile(rb'"type"\s*:\s*"json_object"')
INLINE_DATA = re.compile(rb'"data:[^",]{0,200};base64,[^"]*+"')
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_LISTS = re.compile(rb"\[[^\[\]]*+\]")
_NOTHING = (b"", b"null", b"[]", b"{}")
_NO_MESSAGE = 20
"""A list of messages with fewer bytes may be empty."""
_decode_model = msgspec.json.Decoder(str | None).decode
_STREAM = {b"true": True, b"false": False, b"null": False}


def parse_body(
    body: bytes, form: RequestForm, known: frozenset[str], needs_of: type[BodyNeeds]
) -> ParsedRequest:
    """Read the model, whether a stream is asked for, and the needs. `known`: the fields that must
    be unambiguous, beside those of the form.

    Raises `InvalidBody`.
    """
    names = form.fields
    fields = read_fields(body, known if names <= known else known | names)
    name = model_in(fields)
    stream = False
    if (raw := fields.get("stream")) is not None:
        value = _STREAM.get(bytes(raw))
        if value is None:
            raise InvalidBody("`stream` must be true or false.", param="stream")
        stream = value
    prompt = _prompt_in(fields, form)
    needs = needs_of(fields, prompt, form.task, form.translations)
    chat = needs if form.task == "chat" else None
    return ParsedRequest(model=name, stream=stream, needs=needs, prompt=chat, fields=fields)


def model_in(fields: dict[str, Raw]) -> str:
    """The model that a body names. Raises `InvalidBody`."""
    try:
        name: str | None = _decode_model(fields.get("model", b"null"))
    except msgspec.DecodeError as error:
        raise InvalidBody("`model` must be a string.", param="model") from error
    if not name:
        problem = "You must name a model." if name is None else "`model` must not be empty."
        raise ModelMissing(problem, param="model")
    return name


def _prompt_in(fields: dict[str, Raw], form: RequestForm) -> PromptField:
    """The first prompt that the body has. Raises `InvalidBody`."""
    for prompt in form.prompts:
        raw = fields.get(prompt.name)
        if raw is not None and (len(raw) != len(b"null") or bytes(raw) != b"null"):
            break
    else:
        missing = form.prompts[0].name
        raise InvalidBody(f"`{missing}` is missing.", param=missing)
    if prompt.messages:
        if memoryview(raw)[0] != ord("[") and not (prompt.text and memoryview(raw)[0] == ord('"')):
            raise InvalidBody(f"`{prompt.name}` must be a list.", param=prompt.name)
        if len(raw) < _NO_MESSAGE and not bytes(raw)[1:-1].strip():
            raise InvalidBody(f"`{prompt.name}` must not be empty.", param=prompt.name)
    for name in prompt.beside:
        if bytes(fields.get(name, b"null")) == b"null":
            raise InvalidBody(f"`{name}` is missing.", param=name)
    return prompt


def _of_text(raw: bytes) -> int:
    """Tokens of all texts in a piece of JSON; escapes count as the characters that they stand
    for."""
    images = 0
    if raw.find(b";base64,") >= 0:
        raw, images = INLINE_DATA.subn(b"", raw)
    return characters_in(raw) // CHARACTERS_PER_TOKEN + images * IMAGE_TOKENS


def characters_in(raw: bytes) -> int:
    """Characters of a piece of JSON; an escape counts as the character that it stands for."""
    characters = len(raw) if raw.isascii() else len(raw.decode(errors="replace"))
    if ord("\\") not in raw:  # a number: CPython searches bytes for bytes ten times slower
        return characters
    escapes = raw.count(b"\\") - raw.count(b"\\\\")
    return characters - escapes - 4 * raw.count(b"\\u")


def _of_longest(raw: bytes) -> int:
    """Tokens of a text, of a list of token ids, or of the longest of a list of either."""
    if raw[:1] != b"[":
        return _of_text(raw)
    if ord('"') in raw:
        return max(_of_text(item[0]) for item in islice(_STRINGS.finditer(raw), _MOST_ITEMS))
    if b"[" in raw[1:]:
        return max(
            (_ids(item[0]) for item in islice(_LISTS.finditer(raw, 1), _MOST_ITEMS)), default=0
        )
    return _ids(raw)


def _ids(raw: bytes) -> int:
    return raw.count(b",") + 1
