"""The body of a streamed response: relays the backend's pieces until either side ends it.

A server may iterate over it; each step then waits for the backend. Nexus's server waits by itself:
it calls `feed` with the bytes, and reports how the stream ended. Both ways record the request once.
"""

from __future__ import annotations

import errno
import math
from typing import Protocol

from nexus.errors import FAULTS, Fault, RequestFailed
from nexus.http.client_watch import ClientGone, Stopping
from nexus.http.connection_pool import Connection
from nexus.http.response_parser import MalformedResponse
from nexus.providers.errors import fault_within_stream
from nexus.proxy.attempt import Attempt

_CONNECTION_ENDS = frozenset({"stream_reset", "stream_idle", "stream_deadline"})
"""Errors of a backend's connection that are harmless after the end of its stream."""


class Recording(Protocol):
    """Records the request of a relayed stream."""

    def report_first_token(self, at: float) -> None:
        """Record when the first content arrived, on the engine's clock."""

    def report_ping(self) -> None:
        """Record that the client got a ping of the gateway's own."""

    def release(self) -> None:
        """Release what the request holds. May be called again."""

    def finish(self, fault: Fault | None, status: int | None = None) -> None:
        """Record the end of the request. Only the first call counts."""


class StreamError(RequestFailed):
    """The backend reported the error within its stream, where the client has seen it."""


class StreamBody:
    """Relays one stream whose content has started, or that has shown a sign of life.

    Attributes:
        cut: The client's connection must be closed without the end of the response.
        ended: Whether the bytes returned last are the stream's end.
    """

    def __init__(
        self,
        recording: Recording,
        attempt: Attempt,
        *,
        ping_s: float = 0.0,
    ) -> None:
        """After `ping_s` of silence, and each time again, the client gets a ping; 0 for none."""
        assert attempt.stream is not None
        self._recording = recording
        self._attempt = attempt
        self._fault: Fault | None = None
        self._stream = attempt.stream
        self._response = attempt.response
        self._status = attempt.status
        self._started = False
        self._ping_s = ping_s if ping_s and not attempt.stream.binary else math.inf
        self._pinged_s = self._quiet_s = 0.0
        self._first_token_reported = False
        self.ended = self.cut = False

    @property
    def backend(self) -> Connection | None:
        """The connection to wait for; None under TLS, where decrypted bytes may be buffered."""
        connection = self._attempt.connection
        return None if connection.tls else connection

    @property
    def _complete(self) -> bool:
        """Whether the stream is complete: after `[DONE]`, whatever the connection does."""
        return self._response.complete or self._stream.done

    def start(self) -> bytes:
        """The first bytes for the client."""
        self._started = True
        shown = self._attempt.release_withheld()
        self._report_first_token()
        if self._complete:
            shown += self._conclude()
            self.release()
        return shown

    def feed(self, data: bytes) -> bytes:
        """Feed bytes from the backend (empty: it closed); returns the bytes for the client."""
        response, broken = self._response, not data
        try:
            response.feed(data)
        except MalformedResponse:
            broken = True  # but the end of the stream may have come before
        shown = self._stream.feed(piece) if (piece := response.body()) else b""
        if not self._first_token_reported:
            self._report_first_token()
        if self._complete:
            return shown + self._conclude()
        return shown + self.fail(self.reset()) if broken else shown

    def feed_chunk(self, data: bytes) -> bytes:
        """As `feed`, but returns chunks. A whole chunk without changes is forwarded as it is."""
        if self._first_token_reported and (piece := self._response.whole_chunk(data)) is not None:
            stream = self._stream
            shown = stream.feed(piece)
            if stream.done:
                return chunk(shown + self._conclude())
            return data if shown is piece else chunk(shown)
        return chunk(self.feed(data))

    def idle_s(self) -> float:
        """How long the backend has been silent."""
        return self._stream.quiet_s()

    def silence_limit(self, quiet_s: float) -> tuple[float, RequestFailed]:
        """How much longer the backend may be silent, in seconds, and the failure after that."""
        return self._attempt.silence_limit(quiet_s)

    def next_check_s(self, quiet_s: float) -> float:
        """How long `silence_limit` and `ping` need no check after a silence of `quiet_s`.

        The first token shortens the limit, so a check must come within it.
        """
        since_ping_s = quiet_s - self._pinged_s if quiet_s >= self._pinged_s else quiet_s
        return min(self._attempt.idle_s, max(0.0, self._ping_s - since_ping_s))

    def ping(self, quiet_s: float) -> bytes:
        """The ping for a client whose backend has been silent for so long; empty if none is due."""
        if quiet_s < self._pinged_s:
            self._pinged_s = 0.0  # something came meanwhile
        if quiet_s - self._pinged_s < self._ping_s or self._stream.within_event or self.ended:
            return b""
        self._pinged_s = quiet_s
        self._recording.report_ping()
        return self._attempt.dialect.KEEPALIVE

    def reset(self) -> RequestFailed:
        """The failure for `fail` if the backend's connection breaks."""
        return RequestFailed(
            "stream_reset", f"The stream from backend {self._attempt.backend_name} broke off."
        )

    def fail(self, failure: RequestFailed) -> bytes:
        """End the stream; returns the event that reports the failure to the client."""
        stream = self._stream
        whole = (stream.error is not None or stream.finished) and not stream.binary
        if whole and failure.fault.code in _CONNECTION_ENDS:
            return self._conclude()  # the client has the whole stream
        stream.interrupt()
        self._end(failure.fault)
        if stream.binary:
            self.cut = True
        if stream.binary or isinstance(failure, StreamError):
            return b""
        ended = b"\n\n" if stream.within_event else b""
        return ended + self._attempt.dialect.error_event(
            failure.message,
            status=failure.fault.status or 502,
            code=failure.fault.code,
            number=stream.next_number,
            request_id=self._attempt.request_id,
        )

    def stop(self, stopping: Stopping) -> bytes:
        """End the stream because the gateway does; returns the event for the client."""
        event = b""
        if not self.ended:
            event = self.fail(stopping.failure(within_stream=True))
        self.written()
        return event

    def _conclude(self) -> bytes:
        """The last bytes for the client when the stream has ended."""
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
        self._attempt.end(fault)  # a slow client must not delay this

    def _report_first_token(self) -> None:
        if not self._first_token_reported and self._stream.first_token_at:
            self._first_token_reported = True
            self._recording.report_first_token(self._stream.first_token_at)

    def release(self) -> None:
        """Release what the request holds, once it has ended and before the client gets its end: a
        quick client sends its next request, which may need the same place. Not for the hub."""
        self._recording.release()

    def written(self) -> None:
        """Report that all returned bytes have been written."""
        if self.ended:
            self._recording.finish(self._fault, None if self._fault else self._status)

    def client_left(self) -> None:
        """Report that the client disconnected. After `[DONE]` it had the whole stream, and after an
        error event all that it needs to know."""
        if not self.ended and (self._stream.done or self._stream.error is not None):
            self._conclude()
            self.written()
        else:
            self.close()

    def close(self) -> None:
        """Report that the server is done. Before `written`, this means that the client is gone."""
        fault = self._fault or FAULTS["client_gone"]
        self._attempt.end(fault)
        self._recording.finish(fault)

    def _next(self) -> bytes:
        """Wait for the backend, or until a ping is due."""
        if self._ping_s == math.inf:
            data = self._attempt.receive()
        else:
            data = self._attempt.receive(self._quiet_s, self._ping_s)
        if data is not None:
            self._quiet_s = self._pinged_s = 0.0
            return self.feed(data)
        self._quiet_s += self._ping_s
        return self.ping(self._quiet_s)

    def __iter__(self) -> StreamBody:
        return self

    def __next__(self) -> bytes:
        # The server iterates again only when it has written the last bytes.
        if not self._started:
            return self.start()
        if self.ended:
            self.written()
            raise StopIteration
        try:
            while not (shown := self._next()) and not self.ended:
                pass
        except RequestFailed as failure:
            shown = self.fail(failure)
        except ClientGone:
            self.client_left()
            raise StopIteration from None
        except Stopping as stopping:
            shown = self.stop(stopping)
        except OSError:
            shown = self.fail(self.reset())
        except BaseException:
            self._attempt.end(FAULTS["shutdown"])
            self._recording.finish(FAULTS["shutdown"])
            raise
        if self.ended:
            self.release()
        if shown or not self.ended:
            return shown
        self.written()
        if self.cut:  # the server then closes the connection
            raise ConnectionResetError(errno.ECONNRESET, "the response of the backend broke off")
        raise StopIteration


def chunk(data: bytes) -> bytes:
    """Bytes as a chunk of the chunked transfer coding; nothing for no bytes."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
