"""What the stream readers of all dialects over server-sent events share: whole events, and when
they came.

An event is forwarded when it is complete. Half an event never reaches the client, which could not
read the error event that follows it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec

from nexus.dialects.base import ReportedError, Usage
from nexus.dialects.lenient_json import UNREADABLE, lenient
from nexus.http.sse import CR, Event, EventReader
from nexus.runtime.text import mask_key

_LONGEST_HELD = 64 * 1024
"""A longer event is forwarded before it is complete, unmodified: it is not the one with the
usage."""


class EventStream(ABC):
    """A `StreamReader` but for what the events mean."""

    binary = False
    stored_ids: tuple[str, ...] = ()
    units = 0.0

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        hide_usage: bool = False,
        own_key: str | None = None,
    ) -> None:
        """The arguments are those of `AttemptDialect.open_stream`."""
        self._clock = clock
        self._hide_usage = hide_usage
        self._own_key = own_key
        self._reader = EventReader()
        self._between_events = True
        self._hidden = False
        self._forwarded = 0
        self.content = False
        self.done = False
        self.error: ReportedError | None = None
        self.events = 0
        self.first_token_at = 0.0
        self.alive_at = 0.0
        self.last_at = 0.0
        self.longest_gap_s = 0.0

    @abstractmethod
    def _understand(self, event: Event, data: bytes) -> bytes:
        """Update the state from an event with data; returns what the client gets, `event.raw`
        itself if unmodified."""

    @property
    def next_number(self) -> int:
        return self.events

    @abstractmethod
    def counted_tokens(self) -> int: ...

    @property
    @abstractmethod
    def usage(self) -> Usage | None: ...

    @property
    @abstractmethod
    def finished(self) -> bool: ...

    @abstractmethod
    def _count_output(self, piece: bytes) -> bool:
        """Count a packet with nothing but one event of output, without parsing it; False if it may
        be anything else. The packet ends with an empty line and has no carriage return."""

    def feed(self, piece: bytes) -> bytes:
        now = self._clock()
        if self.first_token_at:
            if (gap_s := now - self.last_at) > self.longest_gap_s:
                self.longest_gap_s = gap_s
            self.last_at = now
            # Nearly every packet is one event of output. Cutting it costs more than all the rest.
            if (
                self._between_events
                and piece[-2:] == b"\n\n"
                and CR not in piece
                and self._count_output(piece)
            ):
                self.events += 1
                return piece
        self.last_at = now
        shown = self._whole_events(self._reader.feed(piece))
        self._between_events = self._reader.between_events
        return shown

    def _whole_events(self, events: list[Event]) -> bytes:
        kept = []
        for event in events:
            if event.tail:
                shown = b"" if self._hidden else event.raw
            else:
                shown = self._shown(event)
                self._hidden = shown is not event.raw
            if self._forwarded:
                kept.append(event.raw[self._forwarded :])
                self._forwarded = 0
            elif shown:
                kept.append(shown)
            if self.done:  # what follows in the same packet is no part of the stream
                self._reader.pending.clear()
                if event.raw.endswith(b"\r\n\r") and not self._hidden:
                    kept.append(b"\n")  # else it would come when nobody reads any more
                    self._hidden = True
                break
        pending = self._reader.pending
        if self._forwarded or len(pending) > _LONGEST_HELD:
            kept.append(bytes(pending[self._forwarded :]))
            self._forwarded = len(pending)
        return kept[0] if len(kept) == 1 else b"".join(kept)

    def _shown(self, event: Event) -> bytes:
        if event.data is None:
            self.alive_at = self.last_at
            return event.raw
        shown = self._understand(event, event.data)
        return shown if self.error is None else mask_key(shown, self._own_key)

    def end(self) -> bytes:
        event = self._reader.rest()
        if event is None:
            return b""
        shown = self._shown(event)
        return event.raw[self._forwarded :] if self._forwarded else shown

    def interrupt(self) -> None:
        if self.first_token_at:
            self.longest_gap_s = max(self.longest_gap_s, self.quiet_s())

    def quiet_s(self) -> float:
        return self._clock() - self.last_at

    @property
    def within_event(self) -> bool:
        return self._forwarded > 0

    def _mark_output(self) -> None:
        """The event carried a piece of output."""
        self.content = True
        if not self.first_token_at:
            self.first_token_at = self.last_at


class NamedEventStream(EventStream):
    """A reader of events that have names, of which one is the end. Each delta is counted.

    Attributes:
        deltas: How many events carried output.
    """

    deltas = 0

    @property
    def finished(self) -> bool:
        """Whether the event that is the end has come."""
        return self.done and self.error is None

    def counted_tokens(self) -> int:
        return self.deltas


def type_in(data: bytes) -> bytes:
    """What an event says that it is, in the form of its name; empty if that cannot be read."""
    try:
        return str(_decode_type(data).type or "").encode()
    except UNREADABLE:
        return b""


class _Type(msgspec.Struct):
    type: Any = None


_decode_type = lenient(msgspec.json.Decoder(_Type).decode)
