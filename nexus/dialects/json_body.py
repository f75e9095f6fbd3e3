"""A request's body: its top-level fields as raw JSON, and the body with one field replaced.

Values are not parsed, and all other bytes stay as they are. Clients also send JSON that is not
strict: NaN and infinities, lone surrogates, a byte order mark. Backends may accept those, so they
are forwarded unmodified.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import msgspec

from nexus.dialects.base import InvalidBody
from nexus.dialects.lenient_json import UNREADABLE

Raw = msgspec.Raw

_MOST_FIELDS = 1000
_MAY_HAVE_MORE = 256 * 1024
"""Fields are not counted in a smaller body, which cannot have so many that they cost much."""
_SHORTEST_FIELD = len(b',"a":0')


class _Key:
    """A field's name that equals no other, so that repeated names are separate keys."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


_MOST_VALUES = 200_000
"""A list of a conversation with more is not changed."""
_decode_items = msgspec.json.Decoder(list[Raw]).decode
_decode_small = msgspec.json.Decoder(dict[str, Raw]).decode


def _decode(body: bytes) -> dict[str, Raw]:
    """The fields of an object; of repeated ones the last. Raises as `msgspec` does, or
    `InvalidBody`."""
    if len(body) < _MAY_HAVE_MORE:
        return _decode_small(body)
    return {key.name: raw for key, raw in _decode_all(body).items()}


def _decode_all(body: bytes) -> dict[_Key, Raw]:
    """All fields of an object. Raises as `msgspec` does, or `InvalidBody` as soon as there are
    too many."""
    remaining = _MOST_FIELDS

    def new_key(_: Any, name: str) -> _Key:
        nonlocal remaining
        remaining -= 1
        if remaining < 0:
            raise InvalidBody(f"The body has over {_MOST_FIELDS} fields.")
        return _Key(name)

    return msgspec.json.decode(body, type=dict[_Key, Raw], dec_hook=new_key)


_NAME = re.compile(rb'[\s{,]*("(?:[^"\\]++|\\.)*+")\s*:\s*', re.DOTALL)
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_END = re.compile(rb"[\s{]*\}\s*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_fields(body: bytes, unambiguous: frozenset[str] = frozenset()) -> dict[str, Raw]:
    """The fields at the top level of a body. Raises `InvalidBody`.

    A body that has one of the `unambiguous` fields twice, or in another case, is refused. Two
    readers could understand it differently: Go's ignores the case.
    """
    text = body
    try:
        if not body.isascii():
            body.decode()  # msgspec does not check the bytes of values that it skips
        fields = _decode(body)
    except msgspec.ValidationError as error:
        raise InvalidBody("The body must be a JSON object.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = _strict(body)
        try:
            text.decode(errors="surrogatepass")
            fields = _decode(text)
        except msgspec.ValidationError:
            raise InvalidBody("The body must be a JSON object.") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InvalidBody(f"The body is not valid JSON: {error}", json=False) from error
        fields = {name: Raw(body[slice(*span)]) for name, span in _all_spans(text, fields).items()}
    except RecursionError as error:
        raise InvalidBody("The body is nested too deeply.", json=False) from error
    if unambiguous:
        _check_names(text, fields, unambiguous)
    return fields


def has_more_values(raw: bytes, most: int) -> bool:
    """Whether valid JSON has more than `most` values, by the commas outside its texts."""
    return raw.count(b",") > most and _TEXT.sub(b"", raw).count(b",") > most


def with_field(body: bytes, name: str, value: bytes) -> bytes:
    """The body with one field replaced, or added at its end; all other bytes stay.

    Raises `InvalidBody` if it has too many fields, and RecursionError if it is nested too deeply.
    """
    text, fields = _decode_leniently(body)
    spans = _all_spans(text, fields)
    if name in spans:
        start, end = spans[name]
        return body[:start] + value + body[end:]
    return body.rstrip()[:-1] + b'%b"%b":%b}' % (b"," if fields else b"", name.encode(), value)


def with_items(body: bytes, name: str, mark: bytes, change: Callable[[Raw], Raw | None]) -> bytes:
    """A body that was parsed, with the items of one list as `change` returns them; None leaves an
    item out.

    All items without `mark` keep their bytes. A list with too many values, or one that cannot be
    read, is left as it is: the backend says what is wrong with it.
    """
    if mark not in body or (raw := read_fields(body).get(name)) is None:
        return body
    if has_more_values(bytes(raw), _MOST_VALUES):
        return body
    try:
        items = _decode_items(raw)
        left = [
            kept
            for item in items
            if (kept := change(item) if mark in bytes(item) else item) is not None
        ]
        return body if left == items else with_field(body, name, msgspec.json.encode(left))
    except UNREADABLE:
        return body


def without_fields(body: bytes, names: Collection[str]) -> bytes:
    """A body that was parsed, without these fields. The others keep their bytes and order."""
    try:
        text, fields = _decode_leniently(body)
        if fields.keys().isdisjoint(names):
            return body
        pairs = [(key.name, raw) for key, raw in _decode_all(text).items()]
    except (RecursionError, msgspec.DecodeError, InvalidBody):
        return body  # the backend says what is wrong with it
    kept, at = [], 0
    for name, raw in pairs:
        key = _NAME.match(text, at)
        assert key is not None, "every field of a JSON object is found"
        at = key.end() + len(raw)
        while text[at : at + 1].isspace():  # the value of a NaN is longer in the body
            at += 1
        if name not in names:
            kept.append(body[key.start(1) : at].rstrip())
    return b"{%b}" % b",".join(kept)


def replace_model(body: bytes, model: str) -> bytes:
    """The body with another `model`; all other bytes stay. Raises `InvalidBody`."""
    try:
        return with_field(body, "model", msgspec.json.encode(model))
    except RecursionError as error:
        raise InvalidBody("The body is nested too deeply.", json=False) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidBody("The body must be a JSON object.", json=False) from error


def _strict(body: bytes) -> bytes:
    """Strict JSON of the same length, with values at the same offsets. What strict JSON lacks is
    another value."""
    text = b"   " + body[3:] if body.startswith(_BYTE_ORDER_MARK) else body
    # A list may stand wherever a value may, and is harmless in a string. A number could join its
    # neighbours.
    text = (
        text.replace(b"-Infinity", b"[]       ")
        .replace(b"Infinity", b"[]      ")
        .replace(b"NaN", b"[] ")
    )
    return text.replace(b"\\ud", b"\\uf").replace(b"\\uD", b"\\uF")  # no surrogate is left


def _decode_leniently(body: bytes) -> tuple[bytes, dict[str, Raw]]:
    """The body as strict JSON, and its fields. Raises as `_decode` does."""
    try:
        return body, _decode(body)
    except msgspec.DecodeError:
        text = _strict(body)
        return text, _decode(text)


def _check_names(text: bytes, fields: dict[str, Raw], unambiguous: frozenset[str]) -> None:
    if not unambiguous.issuperset(fields):
        for name in fields:
            if name not in unambiguous and (meant := name.casefold()) in unambiguous:
                raise InvalidBody(f"`{name}` must be written `{meant}`.", param=name)
    # Beside the fields and the punctuation between them there is only white space, or repeated
    # fields.
    values = sum(map(len, fields)) + sum(map(len, fields.values()))
    rest = len(text) - 1 - values - 4 * len(fields)
    if (
        rest >= _SHORTEST_FIELD
        and not _is_spaced(text, fields)
        and _spans(text, fields.items()) is None
    ):
        for name, times in Counter(key.name for key in _decode_all(text)).items():
            if times > 1 and name in unambiguous:
                raise InvalidBody(f"`{name}` is given {times} times.", param=name)


def _is_spaced(text: bytes, fields: dict[str, Raw]) -> bool:
    """Whether the text is these fields as Python's `json` writes them, with spaces."""
    pairs = b", ".join([b'"%b": %b' % (name.encode(), raw) for name, raw in fields.items()])
    return text == b"{%b}" % pairs


def _all_spans(text: bytes, fields: dict[str, Raw]) -> dict[str, tuple[int, int]]:
    """Start and end of the values of an object; of repeated fields those of the last."""
    spans = _spans(text, fields.items())
    if spans is None:
        spans = _spans(text, [(key.name, raw) for key, raw in _decode_all(text).items()])
    assert spans is not None, "every field of a JSON object is found"
    return spans


def _spans(text: bytes, fields: Iterable[tuple[str, Raw]]) -> dict[str, tuple[int, int]] | None:
    """Start and end of each value in the text of an object with exactly these fields in this
    order; else None."""
    spans = {}
    at = 0
    for name, raw in fields:
        key = _NAME.match(text, at)
        if key is None or (key[1][1:-1] != name.encode() and json.loads(key[1]) != name):
            return None
        start, at = key.end(), key.end() + len(raw)
        if text[start:at] != bytes(raw):
            return None
        spans[name] = start, at
    return spans if _END.fullmatch(text, at) else None
