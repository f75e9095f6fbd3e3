"""The reader of a binary response, such as audio, which is relayed as it arrives."""

from __future__ import annotations

from collections.abc import Callable

from nexus.dialects.base import ReportedError, Usage


class BinaryStream:
    """A `StreamReader` for bytes without a form: the first ones are its content. A whole response
    may have none, as speech of an empty text.

    Only the end of the HTTP message ends it, and no error can be reported within it.
    """

    binary = True
    stored_ids: tuple[str, ...] = ()
    done = False
    error: ReportedError | None = None
    events = 0
    next_number = 0
    alive_at = 0.0
    units = 0.0
    within_event = False
    usage: Usage | None = None
    finished = True

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.content = False
        self.first_token_at = self.last_at = self.longest_gap_s = 0.0

    def feed(self, piece: bytes) -> bytes:
        now = self._clock()
        if self.first_token_at:
            self.longest_gap_s = max(self.longest_gap_s, now - self.last_at)
        else:
            self.content, self.first_token_at = True, now
        self.last_at = now
        return piece

    def end(self) -> bytes:
        return b"" if self.content else self.feed(b"")

    def interrupt(self) -> None:
        if self.first_token_at:
            self.longest_gap_s = max(self.longest_gap_s, self.quiet_s())

    def quiet_s(self) -> float:
        return self._clock() - self.last_at

    def counted_tokens(self) -> int:
        return 0
