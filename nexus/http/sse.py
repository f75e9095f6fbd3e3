"""Splits a stream, in pieces of any size, into server-sent events, and keeps their bytes.

Format: the HTML standard, section 9.2 (lines end with LF, CR, or CRLF; an empty line ends an event;
lines that start with a colon are comments).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LONGEST_END = 4
_LONGEST_EVENT = 16 * 1024 * 1024
"""Longer events are forwarded in pieces that are not parsed."""
_FIRST_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
LF, CR = b"\n\r"
"""Numbers: to look for bytes in bytes with `in`, CPython raises and drops an exception first."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def starts_events(data: bytes) -> bool | None:
    """Whether a body with this start is a stream of events; None if it is not clear yet."""
    if len(data) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(data):
        return None
    text = data.removeprefix(_BYTE_ORDER_MARK).lstrip(b"\r\n")
    if text.startswith(_FIRST_FIELDS):
        return True
    return None if any(field.startswith(text) for field in _FIRST_FIELDS) else False


class Event(NamedTuple):
    """An event.

    Attributes:
        raw: Its bytes, with the empty line at its end.
        data: None if it has none, such as a comment.
        tail: It is only the line feed of a CRLF whose CR has ended the last event.
    """

    raw: bytes
    data: bytes | None
    kind: bytes = b""
    tail: bool = False


_TAIL = Event(b"\n", None, tail=True)


class EventReader:
    """Splits a stream into its events. `pending` holds the start of an incomplete one."""

    def __init__(self) -> None:
        self.pending = bytearray()
        self._searched = 0
        self._started = False
        self._after_cr = False

    @property
    def between_events(self) -> bool:
        """Whether the next bytes start an event."""
        return not self.pending and not self._after_cr

    def feed(self, piece: bytes) -> list[Event]:
        """The events that this piece completes."""
        if (
            not self.pending
            and not self._after_cr
            and piece[:6] == b"data: "
            and piece[-2:] == b"\n\n"
        ):
            # Nearly every packet of a stream is one whole event in one line.
            data = piece[6:-2]
            if LF not in data and CR not in data:
                self._started = True
                return [Event(piece, data)]
        return self._split(piece)

    def _split(self, piece: bytes) -> list[Event]:
        pending = self.pending
        events: list[Event] = []
        if self._after_cr and piece:
            self._after_cr = False
            if piece[0] == LF:
                events.append(_TAIL)
                piece = piece[1:]
        pending += piece
        start, searched = 0, self._searched
        while match := _END.search(pending, searched):
            end = searched = match.end()
            events.append(self._event(bytes(pending[start:end])))
            start = end
        if start:
            self._after_cr = start == len(pending) and pending[-1] == CR
            del pending[:start]
        if len(pending) > _LONGEST_EVENT:
            events.append(Event(bytes(pending), None))
            pending.clear()
        # The next search starts where an incomplete end could start.
        self._searched = max(0, len(pending) - _LONGEST_END)
        return events

    def rest(self) -> Event | None:
        """The last event of a stream that ended without an empty line; None without one."""
        if not self.pending:
            return None
        raw = bytes(self.pending)
        self.pending.clear()
        self._searched = 0
        return self._event(raw)

    def _event(self, raw: bytes) -> Event:
        text = raw if self._started else raw.removeprefix(_BYTE_ORDER_MARK)
        self._started = True
        data: list[bytes] = []
        kind = b""
        for line in text.splitlines():
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
            elif name == b"event":
                kind = value.strip()
        return Event(raw, b"\n".join(data) if data else None, kind)
