"""Recognizes a head that was parsed before.

Nearly all messages of one connection have the same head, except for the body's length. A comparison
of bytes then replaces a second parse.
"""

from __future__ import annotations

import msgspec

_CONTENT_LENGTH = b"\r\ncontent-length:"


class HeadCache(msgspec.Struct, frozen=True, gc=False):
    """A head that was parsed and accepted, without the digits of its Content-Length.

    Attributes:
        before: The bytes up to the digits.
        after: The bytes from the digits' end on.
        start: Offset of the digits.
        limit: Offset up to which the end of their line is searched.
    """

    before: bytes
    after: bytes
    start: int
    limit: int

    @classmethod
    def of(cls, head: bytes) -> HeadCache | None:
        """`head` has one Content-Length and ends with an empty line; None if it cannot be
        cached."""
        start = head.lower().find(_CONTENT_LENGTH) + len(_CONTENT_LENGTH)
        end = head.find(b"\r\n", start)
        digits = head[start:end].lstrip(b" \t")
        if start < len(_CONTENT_LENGTH) or not digits.isdigit():
            return None
        start = end - len(digits)
        return cls(head[:start], head[end:], start, end + 2)

    def match(self, data: bytes) -> tuple[int, int] | None:
        """The body's length and the offset of the body, if `data` starts with this head.

        The length may differ, but have no more digits. None if `data` starts with another head.
        """
        if not data.startswith(self.before):
            return None
        end = data.find(b"\r\n", self.start, self.limit)
        length = data[self.start : end]
        if end < 0 or not length.isdigit() or not data.startswith(self.after, end):
            return None
        return int(length), end + len(self.after)
