"""Reads the parts of a request that a translation needs; all others stay raw JSON."""

from __future__ import annotations

import msgspec

from nexus.dialects.json_body import Raw, has_more_values, read_fields
from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.dialects.translation.rules import NULL, Untranslatable, untranslatable

Fields = dict[str, Raw]

_MOST_VALUES = 200_000
"""A conversation has some thousands, and each is parsed and written anew."""

_decode_text = lenient(msgspec.json.Decoder(str).decode)
_decode_number = msgspec.json.Decoder(float).decode
_decode_object = lenient(msgspec.json.Decoder(dict[str, Raw]).decode)
_decode_objects = lenient(msgspec.json.Decoder(list[dict[str, Raw]]).decode)


def fields_of(body: bytes) -> Fields:
    """The top-level fields of a request that are not null. Raises `Untranslatable`, as all of
    these, if it has too many values."""
    if has_more_values(body, _MOST_VALUES):
        raise Untranslatable(
            f"The body has over {_MOST_VALUES} values, too many to be translated for a backend "
            "that speaks another API."
        )
    return {name: raw for name, raw in read_fields(body).items() if raw != NULL}


def text_of(raw: Raw, path: str) -> str:
    """A text. Raises `Untranslatable` for anything else."""
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


def at_most(raw: Raw, most: int | None, path: str) -> Raw | int:
    """A number; `most` if that is known, and the number is larger."""
    return raw if most is None or number_of(raw, path) <= most else most


def object_of(raw: Raw, path: str) -> Fields:
    """The fields of an object that are not null."""
    try:
        fields = _decode_object(bytes(raw))
        return {name: value for name, value in fields.items() if value != NULL}
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
