"""Heads that come again. One connection's messages nearly all have the head of the one before, but for the length of
the body: what was found out about that head then holds, and need not be found out anew.
"""

from __future__ import annotations

import msgspec

_LENGTH = b"\r\ncontent-length:"


class Repeated(msgspec.Struct, frozen=True, gc=False):
    """A head that was read and found good, whose body had a length: the bytes around that length's digits."""

    before: bytes
    after: bytes
    digits: int

    @classmethod
    def of(cls, head: bytes) -> Repeated | None:
        """To know `head`, which gives one length and ends with an empty line, again; None where it is not plain."""
        begin = head.lower().find(_LENGTH) + len(_LENGTH)
        end = head.find(b"\r\n", begin)
        given = head[begin:end]
        digits = given.lstrip(b" \t")
        if begin < len(_LENGTH) or not digits.isdigit():
            return None
        return cls(head[: end - len(digits)], head[end:], len(digits))

    def length_in(self, data: bytes) -> tuple[int, int] | None:
        """The body's length, and where the head ends, if `data` begins with this head but for the length, which has
        not more digits; None otherwise."""
        before, after = self.before, self.after
        if not data.startswith(before):
            return None
        begin = len(before)
        end = data.find(b"\r\n", begin, begin + self.digits + 2)
        length = data[begin:end]
        if end < 0 or not length.isdigit() or not data.startswith(after, end):
            return None
        return int(length), end + len(after)
