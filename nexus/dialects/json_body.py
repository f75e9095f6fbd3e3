"""A request's body: its top-level fields as raw JSON, and the body with one field replaced.

Values are not parsed, and bytes are never written anew. JSON as clients really send it is accepted:
NaN and infinities, lone surrogates, a byte order mark. Backends may take those, so they go on as
they came.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

Raw = msgspec.Raw

READ = frozenset(
    ("model", "stream", "stream_options", "messages", "prompt", "input", "tools", "response_format")
)
"""Fields that the gateway reads, so that a backend must read the same in them."""
_MOST_FIELDS = 1000
_MAY_HAVE_MORE = 256 * 1024
"""A body of fewer bytes cannot have so many fields that they cost much; there they are not
counted."""
_SHORTEST_FIELD = len(b',"input":0')


class InvalidBody(Exception):
    """The body is not a request that a backend could answer.

    `param` names the field, as OpenAI's errors do. `json` is False if the body is not JSON at all.
    """

    def __init__(self, message: str, *, param: str | None = None, json: bool = True) -> None:
        super().__init__(message)
        self.param = param
        self.json = json


class _Key:
    """A field's name that equals no other, so that a name given twice is two keys."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


_decode_small = msgspec.json.Decoder(dict[str, Raw]).decode


def _decode(body: bytes) -> dict[str, Raw]:
    """The fields of an object, the last of those given twice. Raises as `msgspec` does, or
    `InvalidBody`."""
    if len(body) < _MAY_HAVE_MORE:
        return _decode_small(body)
    return {key.name: raw for key, raw in _decode_all(body).items()}


def _decode_all(body: bytes) -> dict[_Key, Raw]:
    """All fields of an object. Raises as `msgspec` does, or `InvalidBody` as soon as there are
    too many."""
    left = _MOST_FIELDS

    def new_key(_: Any, name: str) -> _Key:
        nonlocal left
        left -= 1
        if left < 0:
            raise InvalidBody(f"The body has over {_MOST_FIELDS} fields.")
        return _Key(name)

    return msgspec.json.decode(body, type=dict[_Key, Raw], dec_hook=new_key)


_NAME = re.compile(rb'[\s{,]*("(?:[^"\\]++|\\.)*+")\s*:\s*', re.DOTALL)
_END = re.compile(rb"[\s{]*\}\s*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_fields(body: bytes) -> dict[str, Raw]:
    """The fields at the top level of a body. Raises `InvalidBody`.

    A body that names one of `READ` twice, or in another case, is refused: two readers could
    understand it differently, and Go's ignores the case.
    """
    text = body
    try:
        if not body.isascii():
            body.decode()  # the decoder does not look at the bytes of values that it skips
        found = _decode(body)
    except msgspec.ValidationError as error:
        raise InvalidBody("The body must be a JSON object.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = _strict(body)
        try:
            text.decode(errors="surrogatepass")
            found = _decode(text)
        except msgspec.ValidationError:
            raise InvalidBody("The body must be a JSON object.") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InvalidBody(f"The body is not valid JSON: {error}", json=False) from error
        found = {name: Raw(body[slice(*span)]) for name, span in _all_spans(text, found).items()}
    except RecursionError as error:
        raise InvalidBody("The body is nested too deeply.", json=False) from error
    _check_names(text, found)
    return found


def with_field(body: bytes, name: str, value: bytes) -> bytes:
    """The body with one field replaced, or added at its end; all other bytes stay.

    Raises `InvalidBody` if it has too many fields, RecursionError if it is nested too deeply to be
    read from here.
    """
    text = body
    try:
        found = _decode(text)
    except msgspec.DecodeError:
        text = _strict(body)
        found = _decode(text)
    spans = _all_spans(text, found)
    if name in spans:
        start, end = spans[name]
        return body[:start] + value + body[end:]
    return body.rstrip()[:-1] + b'%b"%b":%b}' % (b"," if found else b"", name.encode(), value)


def _strict(body: bytes) -> bytes:
    """Strict JSON of the same length, with values in the same places; what strict JSON lacks is
    another value."""
    text = b"   " + body[3:] if body.startswith(_BYTE_ORDER_MARK) else body
    # A list may lie wherever a value may, and within a text it does no harm; a number could join
    # its neighbours.
    text = (
        text.replace(b"-Infinity", b"[]       ")
        .replace(b"Infinity", b"[]      ")
        .replace(b"NaN", b"[] ")
    )
    return text.replace(b"\\ud", b"\\uf").replace(b"\\uD", b"\\uF")  # no surrogate is left


def _check_names(text: bytes, found: dict[str, Raw]) -> None:
    if not READ.issuperset(found):
        for name in found:
            if name not in READ and (meant := name.casefold()) in READ:
                raise InvalidBody(f"`{name}` must be written `{meant}`.", param=name)
    # What is left beside the fields and the signs between them is white space, or fields given
    # twice.
    left = len(text) - 1 - sum(map(len, found)) - sum(map(len, found.values())) - 4 * len(found)
    if (
        left >= _SHORTEST_FIELD
        and not _is_spaced(text, found)
        and _spans(text, found.items()) is None
    ):
        for name, times in Counter(key.name for key in _decode_all(text)).items():
            if times > 1 and name in READ:
                raise InvalidBody(f"`{name}` is given {times} times.", param=name)


def _is_spaced(text: bytes, found: dict[str, Raw]) -> bool:
    """Whether the text is these fields as Python's `json` writes them, with spaces."""
    fields = b", ".join([b'"%b": %b' % (name.encode(), raw) for name, raw in found.items()])
    return text == b"{%b}" % fields


def _all_spans(text: bytes, found: dict[str, Raw]) -> dict[str, tuple[int, int]]:
    """Where the values of an object lie, the last of those given twice."""
    spans = _spans(text, found.items())
    if spans is None:
        spans = _spans(text, [(key.name, raw) for key, raw in _decode_all(text).items()])
    assert spans is not None, "every field of a JSON object is found"
    return spans


def _spans(text: bytes, fields: Iterable[tuple[str, Raw]]) -> dict[str, tuple[int, int]] | None:
    """Where each value lies in the text of an object with exactly these fields in this order;
    None for another."""
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
