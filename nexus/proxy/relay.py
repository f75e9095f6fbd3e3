"""The body of a stream's answer: pieces from the backend become pieces for the client until either
ends it.

A server iterates over it, and it waits for the backend; or a server that waits itself, as our
worker does, gives it what came (`feed`) and tells how it ended. Either way the request is recorded
once.
"""

from __future__ import annotations

from typing import Protocol

from nexus.dialects.openai.errors import error_body
from nexus.errors import FAULTS, Fault, RequestFailed
from nexus.http.client_watch import ClientGone, Stopping
from nexus.http.connection_pool import Connection
from nexus.proxy.attempt import Attempt, StreamError

_CONNECTION_ENDS = frozenset({"stream_reset", "stream_idle", "stream_deadline"})
"""What a backend's connection may come to after the end of its stream, without harm."""


class Recording(Protocol):
    """Records the request whose stream is relayed."""

    def report_first_token(self, at: float) -> None:
        """The first content came, on the engine's clock."""

    def finish(self, fault: Fault | None, status: int | None = None) -> None:
        """The request ended. Only the first call counts."""


class StreamBody:
    """One stream that has come to its content, or shown that it is alive.

    `ended`: what was given last is the end, once it is written.
    """

    def __init__(self, recording: Recording, attempt: Attempt) -> None:
        self._recording = recording
        self._attempt = attempt
        self._fault: Fault | None = None
        assert attempt.stream is not None
        self._stream = attempt.stream
        self._answer = attempt.answer
        self._status = attempt.status
        self._started = False
        self._first_token_reported = False
        self.ended = False

    @property
    def backend(self) -> Connection | None:
        """What can be waited for by itself; None where bytes may be there that the socket does
        not show (TLS)."""
        connection = self._attempt.connection
        return None if connection.tls else connection

    def start(self) -> bytes:
        """The first bytes for the client."""
        self._started = True
        shown = self._attempt.begin()
        self._report()
        return shown + self._conclude() if self._attempt.complete else shown

    def feed(self, data: bytes) -> bytes:
        """What the client gets of bytes that the backend sent; empty ones say that it closed."""
        try:
            shown = self._attempt.take(data)
        except RequestFailed as failure:
            return self.fail(failure)
        if not self._first_token_reported:
            self._report()
        return shown + self._conclude() if self._attempt.complete else shown

    def feed_chunk(self, data: bytes) -> bytes:
        """As `feed`, for a client that gets the stream in chunks; a chunk that is to go on as it
        came does so."""
        if self._first_token_reported and (piece := self._answer.whole_chunk(data)) is not None:
            stream = self._stream
            shown = stream.take(piece)
            if stream.done:
                return chunk(shown + self._conclude())
            return data if shown is piece else chunk(shown)
        return chunk(self.feed(data))

    def idle_s(self) -> float:
        """For how long the backend has sent nothing."""
        return self._stream.quiet_s()

    def silence_limit(self, quiet_s: float) -> tuple[float, RequestFailed]:
        """For how much longer the backend may be silent, in seconds, and with what to `fail`
        when that is over."""
        return self._attempt.silence(quiet_s)

    @property
    def check_every_s(self) -> float:
        """How often `silence_limit` is to be asked at least: its limit becomes shorter with the
        first token."""
        return self._attempt.idle_s

    def reset(self) -> RequestFailed:
        """With what to `fail` where the backend's connection breaks."""
        return self._attempt.broken()

    def fail(self, failure: RequestFailed) -> bytes:
        """The stream ends here; gives the event that tells the client."""
        stream = self._stream
        if failure.fault.code in _CONNECTION_ENDS and (stream.error is not None or stream.finished):
            return self._conclude()  # all was said before
        stream.failed()
        self._end(failure.fault)
        if isinstance(failure, StreamError):
            return b""  # the client has seen it
        ended = b"\n\n" if self._stream.within_event else b""
        return ended + error_event(failure.message, failure.fault)

    def stop(self) -> bytes:
        """The gateway ends it, and it is counted so; gives the event that tells the client."""
        event = (
            b""
            if self.ended
            else self.fail(RequestFailed("shutdown", "The gateway is being stopped."))
        )
        self.written()
        return event

    def _conclude(self) -> bytes:
        rest, failure = self._attempt.conclude()
        if failure is not None:
            return rest + self.fail(failure)
        self._end(None)
        return rest

    def _end(self, fault: Fault | None) -> None:
        self.ended = True
        self._fault = fault
        self._attempt.end(fault)  # before the client takes its time over the last bytes

    def _report(self) -> None:
        """What is told while it goes on: its first token."""
        if not self._first_token_reported and self._stream.first_token_at:
            self._first_token_reported = True
            self._recording.report_first_token(self._stream.first_token_at)

    def written(self) -> None:
        """All that was given was written."""
        if self.ended:
            self._recording.finish(self._fault, None if self._fault else self._status)

    def client_left(self) -> None:
        """The client went, and all that was given was written: one that has seen `[DONE]` has
        all it asked for."""
        if self._stream.done and self._stream.error is None and not self.ended:
            self._end(None)
            self.written()
        else:
            self.close()

    def close(self) -> None:
        """The server is done, however that came; before the end, it means that the client is
        gone."""
        self._attempt.end(FAULTS["client_gone"])
        self._recording.finish(FAULTS["client_gone"])

    def __iter__(self) -> StreamBody:
        return self

    def __next__(self) -> bytes:
        # Asked for more, the server has written what it got before.
        if not self._started:
            return self.start()
        if self.ended:
            self.written()
            raise StopIteration
        try:
            while not (shown := self.feed(self._attempt.receive())) and not self.ended:
                pass
        except RequestFailed as failure:
            shown = self.fail(failure)
        except ClientGone:
            self.client_left()
            raise StopIteration from None
        except Stopping:
            shown = self.stop()
        except BaseException:
            self._attempt.end(FAULTS["shutdown"])
            self._recording.finish(FAULTS["shutdown"])
            raise
        if shown or not self.ended:
            return shown
        self.written()
        raise StopIteration


def error_event(message: str, fault: Fault) -> bytes:
    """A failure told within a stream, in OpenAI's form."""
    return b"data: " + error_body(message, status=fault.status or 502, code=fault.code) + b"\n\n"


def chunk(data: bytes) -> bytes:
    """Bytes as a chunk of the chunked transfer coding; nothing for none."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
