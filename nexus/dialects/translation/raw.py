"""Reads the parts of a request that a translation needs; all others stay raw JSON."""

from __future__ import annotations

import msgspec

from nexus.dialects.json_body import Raw
from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.translation.rules import NULL, untranslatable

Fields = dict[str, Raw]

_decode_text = lenient(msgspec.json.Decoder(str).decode)
_decode_number = msgspec.json.Decoder(float).decode
_decode_object = lenient(msgspec.json.Decoder(dict[str, Raw]).decode)
_decode_objects = lenient(msgspec.json.Decoder(list[dict[str, Raw]]).decode)


def text_of(raw: Raw, path: str) -> str:
    """A text. Raises `Untranslatable` for anything else, as all of these."""
    try:
        return _decode_text(bytes(raw))
    except UNREADABLE as error:
        raise untranslatable(path, "it must be a text") from error


def number_of(raw: Raw, path: str) -> float:
    """A number."""
    try:
        return _decode_number(bytes(raw))
    except UNREADABLE as error:
        raise untranslatable(path, "it must be a number") from error


def object_of(raw: Raw, path: str) -> Fields:
    """The fields of an object."""
    try:
        return _decode_object(bytes(raw))
    except UNREADABLE as error:
        raise untranslatable(path, "it must be an object") from error


def objects_of(raw: Raw, path: str) -> list[Fields]:
    """The fields of each object of a list."""
    try:
        return _decode_objects(bytes(raw))
    except UNREADABLE as error:
        raise untranslatable(path, "it must be a list of objects") from error


def type_of(fields: Fields, path: str) -> str:
    """The type of an object that names it."""
    return text_of(fields.get("type", NULL), f"{path}.type")
