"""Heads that come again. One connection's messages nearly all have the head of the one before, but for the length of
the body: what was found out about that head then holds, and need not be found out anew.
"""

from __future__ import annotations

import msgspec

_LENGTH = b"\r\ncontent-length:"


class HeadCache(msgspec.Struct, frozen=True, gc=False):
    """A head that was read and found good, whose body had a length: the bytes around that length's digits. They `begin`
    there, and with the end of their line they reach up to `most`."""

    before: bytes
    after: bytes
    begin: int
    most: int

    @classmethod
    def of(cls, head: bytes) -> HeadCache | None:
        """To know `head`, which gives one length and ends with an empty line, again; None where it is not plain."""
        begin = head.lower().find(_LENGTH) + len(_LENGTH)
        end = head.find(b"\r\n", begin)
        given = head[begin:end]
        digits = given.lstrip(b" \t")
        if begin < len(_LENGTH) or not digits.isdigit():
            return None
        begin = end - len(digits)
        return cls(head[:begin], head[end:], begin, end + 2)

    def match(self, data: bytes) -> tuple[int, int] | None:
        """The body's length, and where the head ends, if `data` begins with this head but for the length, which has
        not more digits; None otherwise."""
        if not data.startswith(self.before):
            return None
        end = data.find(b"\r\n", self.begin, self.most)
        length = data[self.begin : end]
        if end < 0 or not length.isdigit() or not data.startswith(self.after, end):
            return None
        return int(length), end + len(self.after)
