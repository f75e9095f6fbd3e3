"""Server-sent events, cut out of a stream in whatever pieces it comes, with their bytes kept.

Format: the HTML standard, section 9.2 (lines end with LF, CR or CRLF; an empty line ends an event;
lines that begin with a colon are comments).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LONGEST_END = 4
_LONGEST_EVENT = 16 * 1024 * 1024
"""Bytes of an event that are kept to understand it; what is longer goes on in pieces that are
not."""
_FIRST_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
_LF, _CR = b"\n\r"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def starts_events(data: bytes) -> bool | None:
    """Whether a body that begins so is a stream of events, whatever its content type; None if
    that is not clear yet."""
    if len(data) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(data):
        return None
    text = data.removeprefix(_BYTE_ORDER_MARK).lstrip(b"\r\n")
    if text.startswith(_FIRST_FIELDS):
        return True
    return None if any(field.startswith(text) for field in _FIRST_FIELDS) else False


class Event(NamedTuple):
    """`raw`: its bytes, the empty line that ends it included. `data` is None where it carries none
    (a comment, say).

    `tail`: this is only the line feed of a CRLF whose CR has ended the event before.
    """

    raw: bytes
    data: bytes | None
    kind: bytes = b""
    tail: bool = False


_TAIL = Event(b"\n", None, tail=True)


class EventReader:
    """Cuts a stream into its events; what is not complete yet is in `pending`."""

    def __init__(self) -> None:
        self.pending = bytearray()
        self._searched = 0
        self._begun = False
        self._after_cr = False

    @property
    def between_events(self) -> bool:
        """Whether what comes next begins an event."""
        return not self.pending and not self._after_cr

    def feed(self, piece: bytes) -> list[Event]:
        """The events that this piece completes."""
        if (
            not self.pending
            and not self._after_cr
            and piece[:6] == b"data: "
            and piece[-2:] == b"\n\n"
        ):
            # What nearly every packet of a stream is: one whole event in one line.
            data = piece[6:-2]
            if b"\n" not in data and b"\r" not in data:
                self._begun = True
                return [Event(piece, data)]
        return self._cut(piece)

    def _cut(self, piece: bytes) -> list[Event]:
        pending = self.pending
        events: list[Event] = []
        if self._after_cr and piece:
            self._after_cr = False
            if piece[0] == _LF:
                events.append(_TAIL)
                piece = piece[1:]
        pending += piece
        start, searched = 0, self._searched
        while found := _END.search(pending, searched):
            end = searched = found.end()
            events.append(self._event(bytes(pending[start:end])))
            start = end
        if start:
            self._after_cr = start == len(pending) and pending[-1] == _CR
            del pending[:start]
        if len(pending) > _LONGEST_EVENT:
            events.append(Event(bytes(pending), None))
            pending.clear()
        # The next search begins where an end could still begin that is not complete yet.
        self._searched = max(0, len(pending) - _LONGEST_END)
        return events

    def rest(self) -> Event | None:
        """What a stream that ended without a last empty line still held."""
        if not self.pending:
            return None
        raw = bytes(self.pending)
        self.pending.clear()
        self._searched = 0
        return self._event(raw)

    def _event(self, raw: bytes) -> Event:
        text = raw if self._begun else raw.removeprefix(_BYTE_ORDER_MARK)
        self._begun = True
        data: list[bytes] = []
        kind = b""
        for line in text.splitlines():
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
            elif name == b"event":
                kind = value.strip()
        return Event(raw, b"\n".join(data) if data else None, kind)
