"""What a request asks of a model, read from the few fields of its body that say so.

Nothing is read before a decision depends on it, and nothing is parsed item by item: the work for a
body is linear in its size, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import islice

import msgspec

from nexus.dialects.json_body import InvalidBody, Raw, read_fields, with_field
from nexus.errors import RequestFailed
from nexus.routing.needs import ANYTHING, Needs

CHARACTERS_PER_TOKEN = 4
"""How a prompt's length in tokens is estimated before it is sent (the original's rule)."""
IMAGE_TOKENS = 1000
_MOST_ITEMS = 2000
"""Items of a list that are looked at for the longest one."""


class BodyNeeds(msgspec.Struct, dict=True):
    """The needs of a body, each read when it is first asked for. `content` names the field with
    the prompt."""

    fields: dict[str, Raw]
    content: str
    task: str

    @cached_property
    def vision(self) -> bool:
        return self.content == "messages" and _IMAGE.search(self._raw("messages")) is not None

    @cached_property
    def tools(self) -> bool:
        return self._raw("tools") not in _NOTHING

    @cached_property
    def json_mode(self) -> bool:
        return _JSON_MODE.search(self._raw("response_format")) is not None

    @cached_property
    def context(self) -> int:
        raw = self._raw(self.content)
        tokens = _of_text(raw) if self.content == "messages" else _of_longest(raw)
        return tokens + _of_text(self._raw("tools"))

    def _raw(self, name: str) -> bytes:
        return bytes(self.fields.get(name, b""))


class ParsedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as far as routing reads it."""

    model: str
    stream: bool = False
    needs: Needs = ANYTHING


# A quote within a JSON string is escaped, so these match names and values only, never a text that
# speaks of them.
_IMAGE = re.compile(rb'"type"\s*:\s*"(?:image_url|input_image)"')
_JSON_MODE = re.compile(rb'"type"\s*:\s*"json_object"')
_INLINE_DATA = re.compile(rb'"data:[^",]{0,200};base64,[^"]*+"')
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_LISTS = re.compile(rb"\[[^\[\]]*+\]")
_NOTHING = (b"", b"null", b"[]", b"{}")
_NO_MESSAGE = 20
"""A list of messages with fewer bytes may be empty."""
_decode_model = msgspec.json.Decoder(str | None).decode
_STREAM = {b"true": True, b"false": False, b"null": False}


def read(body: bytes, required: Sequence[str], *, task: str = "") -> ParsedRequest:
    """Read a body that must have one of the `required` fields.

    Everything else is left to the backend. Raises `InvalidBody`.
    """
    fields = read_fields(body)
    try:
        name = _decode_model(fields.get("model", b"null"))
    except msgspec.DecodeError as error:
        raise InvalidBody("`model` must be a string.", param="model") from error
    if not name:
        problem = "You must name a model." if name is None else "`model` must not be empty."
        raise InvalidBody(problem, param="model")
    stream = False
    if (raw := fields.get("stream")) is not None:
        asked = _STREAM.get(bytes(raw))
        if asked is None:
            raise InvalidBody("`stream` must be true or false.", param="stream")
        stream = asked
    for content in required:
        raw = fields.get(content)
        if raw is not None and (len(raw) != len(b"null") or bytes(raw) != b"null"):
            break
    else:
        raise InvalidBody(f"`{required[0]}` is missing.", param=required[0])
    if content == "messages":
        if memoryview(raw)[0] != ord("["):
            raise InvalidBody("`messages` must be a list.", param="messages")
        if len(raw) < _NO_MESSAGE and not bytes(raw)[1:-1].strip():
            raise InvalidBody("`messages` must not be empty.", param="messages")
    return ParsedRequest(model=name, stream=stream, needs=BodyNeeds(fields, content, task))


def _of_text(raw: bytes) -> int:
    """Tokens of all texts in a piece of JSON; escapes count as the characters that they stand
    for."""
    images = 0
    if b";base64," in raw:
        raw, images = _INLINE_DATA.subn(b"", raw)
    characters = len(raw) if raw.isascii() else len(raw.decode(errors="replace"))
    escapes = raw.count(b"\\") - raw.count(b"\\\\")
    return (
        characters - escapes - 4 * raw.count(b"\\u")
    ) // CHARACTERS_PER_TOKEN + images * IMAGE_TOKENS


def _of_longest(raw: bytes) -> int:
    """Tokens of a text, of a list of token ids, or of the longest of a list of either."""
    if raw[:1] != b"[":
        return _of_text(raw)
    if b'"' in raw:
        return max(_of_text(item[0]) for item in islice(_STRINGS.finditer(raw), _MOST_ITEMS))
    if b"[" in raw[1:]:
        return max(
            (_ids(item[0]) for item in islice(_LISTS.finditer(raw, 1), _MOST_ITEMS)), default=0
        )
    return _ids(raw)


def _ids(raw: bytes) -> int:
    return raw.count(b",") + 1


def with_model_if_object(body: bytes, model: str) -> bytes:
    """As `with_model`; what is no JSON object stays as it is, for `read` to refuse."""
    try:
        return with_field(body, "model", msgspec.json.encode(model))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidBody):
        return body


def with_model(body: bytes, model: str) -> bytes:
    """The body with `model` replaced; all other bytes stay."""
    try:
        return with_field(body, "model", msgspec.json.encode(model))
    except RecursionError as error:
        raise RequestFailed("invalid_json", "The body is nested too deeply.") from error
