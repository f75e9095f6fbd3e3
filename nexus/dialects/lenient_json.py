"""Reading JSON that is not strict, as Python's and Go's encoders write it: NaN, Infinity, lone
surrogates, a BOM.

Such JSON is forwarded unmodified. Strict reading is tried first, so that all other JSON costs the
same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import msgspec

T = TypeVar("T")
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError)
"""What a decoder of `lenient` raises for what is not JSON, or not of its type."""
_LONGEST_REPAIRED = 1024 * 1024


def strict(data: bytes) -> bytes:
    """The same JSON in strict form. Raises ValueError or RecursionError.

    NaN and the infinities become null, lone surrogates and broken UTF-8 `?` or U+FFFD.
    """
    value = json.loads(data.decode("utf-8-sig", "replace"), parse_constant=lambda _: None)
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def lenient(decode: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """The decoder, which then accepts JSON that is not strict, too, up to 1 MiB."""

    def decode_leniently(data: bytes) -> T:
        try:
            return decode(data)
        except msgspec.ValidationError:
            raise  # it is JSON, but not of the type
        except (msgspec.DecodeError, UnicodeDecodeError):
            if len(data) > _LONGEST_REPAIRED:
                raise
            return decode(strict(data))

    return decode_leniently
