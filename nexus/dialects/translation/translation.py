"""What stands between a client and a backend that speak different protocols.

A translation reads what the backend sends as the backend's dialect does, and writes what the client
gets in the client's. It does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from nexus.dialects.base import AttemptDialect, Dialect, ReportedError, StreamReader, Usage
from nexus.dialects.translation.rules import Rules
from nexus.http.sse import CR, EventReader
from nexus.runtime.text import mask_key


class ClientContext(NamedTuple):
    """What the client's response needs of its request.

    Attributes:
        repeated: The fields that the response repeats: JSON without the braces.
        tools: The namespace and the name of tools that the backend knows by other names.
        model: The model, as the backend calls it.
    """

    repeated: bytes = b""
    tools: Mapping[str, tuple[str, str]] = MappingProxyType({})
    model: str = ""


NO_CONTEXT = ClientContext()


class Receiver(NamedTuple):
    """What is known of who gets a translated request.

    Attributes:
        takes: Fields beyond the common ones that the backend takes.
        max_output_tokens: The most tokens of a response of the model; None if that is not known.
    """

    takes: Collection[str] = ()
    max_output_tokens: int | None = None


class TranslatedRequest(NamedTuple):
    """A request as the backend gets it.

    Attributes:
        dropped: The fields that it lacks, as the table of the translation names them.
    """

    body: bytes
    dropped: tuple[str, ...] = ()
    context: ClientContext = NO_CONTEXT


class EventTranslator(Protocol):
    """Translates the events of one stream, in their order."""

    @property
    def number(self) -> int:
        """The number of the client's next event, in a protocol that numbers its events."""

    def event(self, data: bytes, /) -> bytes:
        """The client's events for the data of one event. Not called for the mark of the end."""

    def end(self, usage: Usage | None, /) -> bytes:
        """The client's last events. Called once, if the stream came to its end."""


def _of(name: str) -> Any:
    """What a part of the object says; dots lead into it."""
    return property(attrgetter(name))


@dataclass(frozen=True, kw_only=True, eq=False)
class Translation(AttemptDialect):
    """One direction between two protocols.

    Attributes:
        name: Its name in metrics, headers and documentation.
        path: The path that the translated request is sent to, as clients know it.
        client: The dialect that the client speaks.
        backend: The dialect that the backend speaks.
        request_rules: What becomes of each field of a request.
        request: Translates a request body that was parsed. Raises `Untranslatable`.
        response: Translates a whole response. Raises `BadResponse`.
        events: Makes the translator of a stream.
    """

    name: str
    path: str
    client: Dialect
    backend: Dialect
    request_rules: Rules
    request: Callable[[bytes, Receiver], TranslatedRequest]
    response: Callable[[bytes, ClientContext], bytes]
    events: Callable[[ClientContext], EventTranslator]

    PASSES_ERRORS = _of("client.PASSES_ERRORS")
    REQUEST_ID_HEADER = _of("client.REQUEST_ID_HEADER")
    KEEPALIVE = _of("client.KEEPALIVE")
    PING_S = _of("client.PING_S")
    error_body = _of("client.error_body")
    error_event = _of("client.error_event")
    asks_for_usage = _of("backend.asks_for_usage")
    ask_for_usage = _of("backend.ask_for_usage")
    usage_in_response = _of("backend.usage_in_response")
    error_in_response = _of("backend.error_in_response")

    def open_stream(
        self,
        *,
        clock: Callable[[], float],
        hide_usage: bool,  # noqa: ARG002 - the client sees no event of the backend
        own_key: str | None,
        context: ClientContext = NO_CONTEXT,
    ) -> StreamReader:
        source = self.backend.open_stream(clock=clock, hide_usage=False, own_key=own_key)
        return TranslatedStream(source, self.events(context), self.client, own_key)


class TranslatedStream:
    """A `StreamReader` that counts as the backend's reader does, and returns the client's events.

    Each event of the client is whole.
    """

    binary = False
    within_event = False
    units = 0.0
    stored_ids: tuple[str, ...] = ()
    content: bool = _of("_source.content")
    done: bool = _of("_source.done")
    error: ReportedError | None = _of("_source.error")
    events: int = _of("_source.events")
    first_token_at: float = _of("_source.first_token_at")
    alive_at: float = _of("_source.alive_at")
    last_at: float = _of("_source.last_at")
    longest_gap_s: float = _of("_source.longest_gap_s")
    usage: Usage | None = _of("_source.usage")
    finished: bool = _of("_source.finished")
    interrupt = _of("_source.interrupt")
    quiet_s = _of("_source.quiet_s")
    counted_tokens = _of("_source.counted_tokens")
    next_number: int = _of("_translator.number")

    def __init__(
        self, source: StreamReader, events: EventTranslator, client: Dialect, own_key: str | None
    ) -> None:
        self._source = source
        self._translator = events
        self._client = client
        self._own_key = own_key
        self._reader = EventReader()
        self._between_events = True
        self._closed = False

    def feed(self, piece: bytes) -> bytes:
        source = self._source
        shown = source.feed(piece)
        # Nearly every packet is one event of output.
        data = _only_data(shown) if self._between_events else None
        if data is not None:
            translated = self._one(data)
        else:
            translated = self._translated(shown) if shown else b""
            self._between_events = self._reader.between_events
        if source.done or source.error is not None:
            return translated + self._close()
        return translated

    def end(self) -> bytes:
        """What is still to be forwarded: with the end of a finished stream, the last events."""
        shown = self._source.end()
        translated = self._translated(shown) if shown else b""
        if not self._closed:
            rest = self._reader.rest()
            if rest is not None and rest.data is not None:
                translated += self._one(rest.data)
            if self._source.finished or self._source.error is not None:
                translated += self._close()
        return translated

    def _translated(self, shown: bytes) -> bytes:
        events = self._reader.feed(shown)
        shown = b"".join([self._one(one.data) for one in events if one.data is not None])
        if not shown and any(one.data is None and not one.tail for one in events):
            return self._client.KEEPALIVE
        return shown

    def _one(self, data: bytes) -> bytes:
        if self._closed or data[:6] == b"[DONE]":
            return b""
        return self._translator.event(data)

    def _close(self) -> bytes:
        """The last events of the client; after an error only that."""
        if self._closed:
            return b""
        self._closed = True
        error = self._source.error
        if error is None:
            return self._translator.end(self._source.usage)
        event = self._client.error_event(
            error.message, status=error.status, code=None, number=self.next_number
        )
        return mask_key(event, self._own_key)


def _only_data(packet: bytes) -> bytes | None:
    """The data of a packet that is one event in the form of OpenAI's or Anthropic's; None if it is
    anything else."""
    start = 6
    if packet[:7] == b"event: ":
        start = packet.find(b"\n", 7) + 7
        if packet[start - 6 : start] != b"data: ":
            return None
    elif packet[:6] != b"data: ":
        return None
    end = len(packet) - 2
    if packet.find(b"\n", start) != end or packet[-1:] != b"\n" or CR in packet:
        return None
    return packet[start:end]
