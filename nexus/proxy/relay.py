"""The body of a streamed response: relays the backend's pieces until either side ends it.

A server iterates over it, and each step waits for the backend. A server that waits by itself, as
ours does, calls `feed` with what came and reports how the stream ended. Either way the request is
recorded once.
"""

from __future__ import annotations

from typing import Protocol

from nexus.errors import FAULTS, Fault, RequestFailed
from nexus.http.client_watch import ClientGone, Stopping
from nexus.http.connection_pool import Connection
from nexus.http.response_parser import MalformedResponse
from nexus.providers.errors import fault_within_stream
from nexus.proxy.attempt import Attempt

_CONNECTION_ENDS = frozenset({"stream_reset", "stream_idle", "stream_deadline"})
"""What may happen to a backend's connection after the end of its stream, without harm."""


class Recording(Protocol):
    """Records the request whose stream is relayed."""

    def report_first_token(self, at: float) -> None:
        """The first content came, on the engine's clock."""

    def finish(self, fault: Fault | None, status: int | None = None) -> None:
        """The request ended. Only the first call counts."""


class StreamError(RequestFailed):
    """The backend reported the error within its stream: the client has seen it already."""


class StreamBody:
    """Relays one stream whose content has started, or that has shown a sign of life.

    Attributes:
        ended: whether the bytes returned last are the stream's end.
    """

    def __init__(self, recording: Recording, attempt: Attempt) -> None:
        assert attempt.stream is not None
        self._recording = recording
        self._attempt = attempt
        self._fault: Fault | None = None
        self._stream = attempt.stream
        self._response = attempt.response
        self._status = attempt.status
        self._started = False
        self._first_token_reported = False
        self.ended = False

    @property
    def backend(self) -> Connection | None:
        """The backend's connection, to be waited for; None for TLS, which may hold bytes that the
        socket does not show."""
        connection = self._attempt.connection
        return None if connection.tls else connection

    @property
    def _complete(self) -> bool:
        """Whether the whole stream is there. `[DONE]` is its end, whatever the connection does
        then."""
        return self._response.complete or self._stream.done

    def start(self) -> bytes:
        """The first bytes for the client."""
        self._started = True
        shown = self._attempt.release_withheld()
        self._report_first_token()
        return shown + self._conclude() if self._complete else shown

    def feed(self, data: bytes) -> bytes:
        """What the client gets of bytes from the backend; empty bytes mean that it closed."""
        response = self._response
        try:
            response.feed(data)
        except MalformedResponse:
            return self.fail(self.reset())
        if not data and not response.complete:
            return self.fail(self.reset())
        shown = self._stream.feed(piece) if (piece := response.body()) else b""
        if not self._first_token_reported:
            self._report_first_token()
        return shown + self._conclude() if self._complete else shown

    def feed_chunk(self, data: bytes) -> bytes:
        """As `feed`, for a client that gets chunks. A whole chunk without changes goes on as it
        came."""
        if self._first_token_reported and (piece := self._response.whole_chunk(data)) is not None:
            stream = self._stream
            shown = stream.feed(piece)
            if stream.done:
                return chunk(shown + self._conclude())
            return data if shown is piece else chunk(shown)
        return chunk(self.feed(data))

    def idle_s(self) -> float:
        """For how long the backend has sent nothing."""
        return self._stream.quiet_s()

    def silence_limit(self, quiet_s: float) -> tuple[float, RequestFailed]:
        """For how much longer the backend may be silent, in seconds, and the failure to give to
        `fail` when that is over."""
        return self._attempt.silence_limit(quiet_s)

    @property
    def check_every_s(self) -> float:
        """How often to check `silence_limit` at least: the first token makes it shorter."""
        return self._attempt.idle_s

    def reset(self) -> RequestFailed:
        """The failure to give to `fail` if the backend's connection breaks."""
        return RequestFailed(
            "stream_reset", f"The stream from backend {self._attempt.backend_name} broke off."
        )

    def fail(self, failure: RequestFailed) -> bytes:
        """End the stream here; returns the event that tells the client."""
        stream = self._stream
        if failure.fault.code in _CONNECTION_ENDS and (stream.error is not None or stream.finished):
            return self._conclude()  # the client has everything
        stream.interrupt()
        self._end(failure.fault)
        if isinstance(failure, StreamError):
            return b""
        ended = b"\n\n" if stream.within_event else b""
        return ended + self._attempt.dialect.error_event(
            failure.message, status=failure.fault.status or 502, code=failure.fault.code
        )

    def stop(self) -> bytes:
        """End the stream because the gateway stops; returns the event that tells the client."""
        event = b""
        if not self.ended:
            event = self.fail(RequestFailed("shutdown", "The gateway is being stopped."))
        self.written()
        return event

    def _conclude(self) -> bytes:
        """The last bytes for the client of a stream that is complete."""
        stream, attempt = self._stream, self._attempt
        rest = stream.end()
        if stream.error is not None:
            fault = fault_within_stream(
                stream.error.status,
                stream.error.body,
                own_key=attempt.failures.own_key,
                content=bool(stream.first_token_at),
            )
            return rest + self.fail(StreamError(fault, stream.error.message))
        if not stream.finished:
            # An incomplete event would garble the error that follows, and clients discard it.
            message = f"The stream from backend {attempt.backend_name} ended before its end."
            return self.fail(RequestFailed("stream_truncated", message))
        self._end(None)
        return rest

    def _end(self, fault: Fault | None) -> None:
        self.ended = True
        self._fault = fault
        self._attempt.end(fault)  # before the client takes its time over the last bytes

    def _report_first_token(self) -> None:
        if not self._first_token_reported and self._stream.first_token_at:
            self._first_token_reported = True
            self._recording.report_first_token(self._stream.first_token_at)

    def written(self) -> None:
        """Everything returned so far is written."""
        if self.ended:
            self._recording.finish(self._fault, None if self._fault else self._status)

    def client_left(self) -> None:
        """The client left, and everything returned was written. A client that has seen `[DONE]`
        has all it asked for."""
        if self._stream.done and self._stream.error is None and not self.ended:
            self._end(None)
            self.written()
        else:
            self.close()

    def close(self) -> None:
        """The server is done. Before the end this means that the client is gone."""
        self._attempt.end(FAULTS["client_gone"])
        self._recording.finish(FAULTS["client_gone"])

    def __iter__(self) -> StreamBody:
        return self

    def __next__(self) -> bytes:
        # A server that asks for more has written what it got before.
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
        except OSError:
            shown = self.fail(self.reset())
        except BaseException:
            self._attempt.end(FAULTS["shutdown"])
            self._recording.finish(FAULTS["shutdown"])
            raise
        if shown or not self.ended:
            return shown
        self.written()
        raise StopIteration


def chunk(data: bytes) -> bytes:
    """Bytes as a chunk of the chunked transfer coding; nothing for no bytes."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
