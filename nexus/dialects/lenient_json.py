"""Reading JSON that is not strict, as Python's and Go's encoders write it: NaN, Infinity, lone
surrogates, a BOM.

Such JSON passes through the gateway as it came. Strict reading is tried first, so that all other
JSON costs the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import msgspec

T = TypeVar("T")
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError)
"""What a decoder of `lenient` raises for what is no JSON, or has another form than it wants."""
_LONGEST_REPAIRED = 1024 * 1024


def strict(data: bytes) -> bytes:
    """The same JSON in strict form: NaN and the infinities become null, lone surrogates and
    broken UTF-8 `?` or U+FFFD. Raises ValueError or RecursionError."""
    value = json.loads(data.decode("utf-8-sig", "replace"), parse_constant=lambda _: None)
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def lenient(decode: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """The decoder, which takes JSON up to 1 MiB that is not strict as well."""

    def decode_leniently(data: bytes) -> T:
        try:
            return decode(data)
        except msgspec.ValidationError:
            raise  # it is JSON, of another form
        except (msgspec.DecodeError, UnicodeDecodeError):
            if len(data) > _LONGEST_REPAIRED:
                raise
            return decode(strict(data))

    return decode_leniently
