"""The interface of a dialect: the protocol that clients of an endpoint speak.

A dialect is a module of pure functions and one incremental stream reader. It does no I/O and reads
no clock of its own. Nothing outside a dialect knows the names of its fields, the form of its errors
or the events of its streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec

from nexus.routing.needs import ANYTHING, Needs


class InvalidBody(Exception):
    """The body is not a request that a backend could serve.

    Attributes:
        param: The field that is wrong, if it is one.
        json: False if the body is not JSON at all.
    """

    def __init__(self, message: str, *, param: str | None = None, json: bool = True) -> None:
        super().__init__(message)
        self.param = param
        self.json = json


class ModelMissing(InvalidBody):
    """The body names no model: the field is missing, null or empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptField:
    """A field of a request body that can hold the prompt.

    Attributes:
        name: Its key at the top level of the body.
        messages: It is a list of messages, not empty, which together are one prompt.
            Otherwise each item of a list is a prompt of its own.
        text: A text may stand for the list of messages.
        beside: Fields that the body must have, too. Their texts belong to every prompt.
    """

    name: str
    messages: bool = False
    text: bool = False
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestForm:
    """What the requests of an endpoint hold, as far as the gateway reads them.

    Attributes:
        prompts: The first of these fields that a body has is its prompt. It must have one.
        task: What the model must be able to do, as `Model.tasks` names it.
        translations: Dialects of backends that its requests can be translated for, each with the
            name of the translation.
        fields: The names of all fields in `prompts`.
    """

    prompts: tuple[PromptField, ...]
    task: str
    translations: tuple[tuple[str, str], ...] = ()
    fields: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        names = [name for prompt in self.prompts for name in (prompt.name, *prompt.beside)]
        object.__setattr__(self, "fields", frozenset(names))

    def fits(self, fields: frozenset[str]) -> bool:
        """Whether a body with these fields has a prompt."""
        return any(fields.issuperset((prompt.name, *prompt.beside)) for prompt in self.prompts)


class Prompt(Protocol):
    """What tells whether a backend has worked on the same conversation before."""

    def text_of(self, path: str, /) -> str | None:
        """The text in a field of the body; dots in `path` lead into objects."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields at the top level of the body."""

    def pieces(self) -> Sequence[bytes]:
        """Raw JSON of the prompt in the order in which its model reads it: tools, system text,
        messages. These come last."""


class BackgroundState(NamedTuple):
    """A response that a backend makes after it has answered.

    Attributes:
        stored_id: Its id.
        ended: Whether it is complete, or has failed.
        usage: Its tokens; None if it does not say.
    """

    stored_id: str
    ended: bool
    usage: Usage | None


class IdReader(NamedTuple):
    """Reads the ids under which a backend stores responses.

    Attributes:
        in_request: Ids of what the backend of a request must have stored.
        in_response: Ids under which the backend stores a whole response, and the name of what it
            has encrypted there.
        sealed: The name of the first thing in a request that only the account which encrypted it
            can read; None if there is nothing of that kind.
        background: The state of a whole response; None if it is not made in the background.
    """

    in_request: Callable[[Prompt], list[str]]
    in_response: Callable[[bytes], tuple[str, ...]]
    sealed: Callable[[Prompt], str | None]
    background: Callable[[bytes], BackgroundState | None]


class UnitReader(NamedTuple):
    """Counts what an endpoint serves beside tokens, or in their place.

    Attributes:
        name: What is counted: `images`, `seconds`, `characters`.
        in_request: The units in a request body that was parsed.
        in_response: The units in a whole response.
    """

    name: str
    in_request: Callable[[bytes], float] | None = None
    in_response: Callable[[bytes], float] | None = None


class ParsedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as far as routing reads it.

    Attributes:
        prompt: Where its conversation is read from; None if the task has no conversations.
        fields: The fields of its body as raw JSON; of a form, `n`.
    """

    model: str
    stream: bool = False
    needs: Needs = ANYTHING
    prompt: Prompt | None = None
    fields: Mapping[str, bytes | msgspec.Raw] = {}


class TokenEstimate(NamedTuple):
    """What a request takes, before its usage is known.

    Attributes:
        prompt: The tokens of its prompt.
        output_limit: The most tokens that a response may have; None if the request states none.
        choices: How many responses it asks for.
        size: Bytes of the body without images, from which its tokens can be bounded.
        beside: The most tokens that images, tools, and the form of messages add.
    """

    prompt: int
    output_limit: int | None
    choices: int = 1
    size: int = 0
    beside: int = 0

    def bound(self, *, strict: bool) -> int:
        """At least as many tokens as the prompt: one for two bytes; for each byte if `strict`."""
        return self.beside + (self.size if strict else -(-self.size // 2))


class Usage(msgspec.Struct):
    """The tokens that a response took, as far as the backend reports them.

    Tokens read from a cache or written to it are part of the prompt's, reasoning tokens of the
    completion's. So there are never more of them, whatever a backend reports.

    Attributes:
        cache_write_1h_tokens: Those of `cache_write_tokens` that are kept for an hour.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int = 0

    def __post_init__(self) -> None:
        prompt, completion = self.prompt_tokens, self.completion_tokens
        if self.cached_tokens:
            self.cached_tokens = min(self.cached_tokens, prompt or 0)
        if self.cache_write_tokens:
            uncached = (prompt or 0) - (self.cached_tokens or 0)
            self.cache_write_tokens = min(self.cache_write_tokens, uncached)
        if self.reasoning_tokens:
            self.reasoning_tokens = min(self.reasoning_tokens, completion or 0)


class ReportedError(NamedTuple):
    """An error that a backend reports in a response of 200, or in a stream.

    Attributes:
        message: What it says, at most 500 characters.
        status: The status of a response that would say the same.
        body: The body of that response.
    """

    message: str
    status: int
    body: bytes


class StreamReader(Protocol):
    """Reads one stream from a backend as it comes, and returns the bytes that the client gets.

    Bytes are forwarded unmodified, in whole events, except for what `open_stream` documents. Times
    are seconds on the clock that it was opened with; 0 means not yet.

    Attributes:
        content: Something has come that the client should see. Until then another backend can be
            tried.
        done: The dialect's own mark of the end has come. Nothing that the connection does later
            matters.
        error: The error that the stream reported.
        events: How many events with data have come, without pings and the mark of the end.
        first_token_at: When the first piece of the model's output came: text, a tool call,
            reasoning.
        alive_at: When the last sign of life came that is no output, such as a comment or a ping.
        last_at: When the last bytes came.
        longest_gap_s: The longest silence after the first token.
        stored_ids: The ids under which the backend stores the response, and the name of what it
            has encrypted in it, as far as it has said.
        binary: It has no events, so that none can report an error.
        units: The images or seconds that came, in a dialect that counts them.
    """

    content: bool
    done: bool
    error: ReportedError | None
    events: int
    first_token_at: float
    alive_at: float
    last_at: float
    longest_gap_s: float
    stored_ids: tuple[str, ...]
    binary: bool
    units: float

    def feed(self, piece: bytes) -> bytes:
        """Read the next bytes; returns what is to be forwarded now."""

    def end(self) -> bytes:
        """The backend has sent everything; returns what was still held back."""

    def interrupt(self) -> None:
        """Stop before the end: the silence since the last bytes counts as a gap."""

    def quiet_s(self) -> float:
        """For how long nothing has come."""

    def counted_tokens(self) -> int:
        """How many events carried output: about the number of tokens where none is reported."""

    @property
    def next_number(self) -> int:
        """The number of an event that would come next, in a dialect that numbers its events."""

    @property
    def within_event(self) -> bool:
        """Whether an event was forwarded in part, and its end has not come."""

    @property
    def usage(self) -> Usage | None:
        """The usage that the backend reported so far."""

    @property
    def finished(self) -> bool:
        """Whether the stream came to its end: by its mark, or as its last events say."""


class AttemptDialect(Protocol):
    """What an attempt at a backend needs of a dialect, or of a translation between two.

    Attributes:
        PASSES_ERRORS: Every error response of a backend goes to the client as it came. Otherwise
            the client gets an error of the gateway if the fault is not the client's.
        KEEPALIVE: What a client that waits for its stream gets, so that no proxy closes the
            connection.
        PING_S: The silence in seconds after which a client gets `KEEPALIVE` within its stream, if
            the configuration says nothing else; 0 for never.
        REQUEST_ID_HEADER: The header of the gateway's errors that has the request's id, beside
            `x-request-id`; None for none.
    """

    @property
    def KEEPALIVE(self) -> bytes: ...  # noqa: N802
    @property
    def PING_S(self) -> float: ...  # noqa: N802
    @property
    def PASSES_ERRORS(self) -> bool: ...  # noqa: N802
    @property
    def REQUEST_ID_HEADER(self) -> str | None: ...  # noqa: N802

    def asks_for_usage(self, body: bytes, /) -> bool:
        """Whether a request for a stream gets its usage without our doing."""

    def ask_for_usage(self, body: bytes, /) -> bytes:
        """The body, a request that was parsed, made to ask for the usage of its stream.

        All other bytes stay. A body that cannot be changed is returned as it is.
        """

    def usage_in_response(self, response: bytes, /, *, lenient: bool = False) -> Usage | None:
        """The usage that a whole response reports; None if it reports none.

        `lenient`: the response is known to be JSON, but perhaps not strict (NaN).
        """

    def error_in_response(self, response: bytes, /) -> ReportedError | None:
        """The error in a whole response of 200; None if it is a response."""

    def open_stream(
        self, *, clock: Callable[[], float], hide_usage: bool, own_key: str | None
    ) -> StreamReader:
        """A reader for one stream.

        `hide_usage` removes what only `ask_for_usage` has put into the stream. `own_key` is the
        gateway's key at the backend, which is masked if an error repeats it.
        """

    def error_body(
        self,
        message: str,
        /,
        *,
        status: int,
        code: str | None,
        param: str | None = None,
        context: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        kind: str | None = None,
    ) -> bytes:
        """The body of an error response of the gateway.

        `kind` is the type that it has in OpenAI's form, if that does not follow from the status.
        """

    def error_event(
        self,
        message: str,
        /,
        *,
        status: int,
        code: str | None,
        number: int = 0,
        request_id: str | None = None,
    ) -> bytes:
        """The event that reports an error of the gateway within a stream, which it ends.

        `number` is the event's, in a dialect that numbers its events.
        """


class Dialect(AttemptDialect, Protocol):
    """What a dialect's module must have.

    Attributes:
        NAME: Its name in configuration and metrics.
        TITLE: Its name in documentation.
        ERROR_SCHEMA: The name of its errors' form in OpenAPI.
        LIMIT_KINDS: What its headers tell of limits: the kind that a dimension belongs to.
    """

    NAME: str
    TITLE: str
    ERROR_SCHEMA: str

    @property
    def LIMIT_KINDS(self) -> Mapping[str, str]: ...  # noqa: N802

    def parse_request(self, body: bytes, form: RequestForm, /) -> ParsedRequest:
        """Read what routing needs. Fields that it does not need may hold anything.

        Raises `InvalidBody`.
        """

    def limit_headers(
        self, kind: str, /, *, limit: int, remaining: int, reset_ns: int, now: float
    ) -> list[tuple[str, str]]:
        """The headers that tell of one of `LIMIT_KINDS`; `now` is in Unix seconds."""

    def replace_model(self, body: bytes, model: str, /) -> bytes:
        """The body with another model; all other bytes stay. Raises `InvalidBody`."""

    def response_events(self, response: bytes, /, status: int) -> bytes:
        """A whole response as the events of a stream that started with keep-alives."""
