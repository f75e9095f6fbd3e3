"""One request's life: checked, routed, attempted, relayed, and finished exactly once, whatever happened.

It takes a request whose head was read and gives a response head and an iterator of bytes.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable

import msgspec

from nexus.dialects.json_body import InvalidBody
from nexus.dialects.openai import request as openai_request
from nexus.dialects.openai.errors import error_body
from nexus.dialects.openai.request import ParsedRequest
from nexus.dialects.openai.stream import Stream
from nexus.dialects.openai.usage import Usage, asks_for_usage
from nexus.errors import FAULTS, Blame, Fault, RequestFailed
from nexus.fleet.outcome import AttemptRecord, Outcome, milliseconds
from nexus.fleet.request_log import LONGEST_NAME
from nexus.http import content_coding, cross_origin
from nexus.http.address import Address
from nexus.http.client_watch import ClientGone, Stopping
from nexus.http.connect_errors import reason
from nexus.http.headers import has_come_through, header_text
from nexus.metrics import labels
from nexus.proxy.admission import Reservation, Waiter
from nexus.proxy.attempt import Attempt
from nexus.proxy.breakers import BUSY_S
from nexus.proxy.endpoints import Endpoint
from nexus.proxy.engine import ClientResponse, Engine
from nexus.proxy.fleet_view import View
from nexus.proxy.keepalive_comments import answer_with_comments
from nexus.proxy.outcome import stream_outcome
from nexus.proxy.relay import StreamBody, error_event
from nexus.proxy.request import Request
from nexus.routing.retries import LONGEST_PAUSE_S, backoff_s
from nexus.routing.router import Choice, RouteQuery

log = logging.getLogger("nexus.proxy")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_AT_ONCE_S = 0.001
"""A body that took longer to come may find another fleet than its head did."""
_JSON = "application/json"
_CONNECTING = frozenset({"connect_failed", "connect_timeout", "dns_failed", "tls_failed"})


class Exchange:
    """Serves one request through `answer()`. Whichever end comes first calls `finish()`, and only that call counts."""

    view: View | None = None
    ask: ParsedRequest | None = None
    model = ""
    asked_model = ""
    choice: Choice | None = None
    attempts = 0
    usage: Usage | None = None
    usage_asked = False
    stream: Stream | None = None
    served = False
    finished = False
    cors: cross_origin.Headers = []
    _coding: str | None = None
    _waited_s = 0.0
    _attempt_began = 0.0
    _before_s: float | None = None
    _after_s: float | None = None

    def __init__(self, engine: Engine, request: Request, endpoint: Endpoint) -> None:
        self.engine = engine
        self.request = request
        self.endpoint = endpoint
        given = request.headers.first.get("x-request-id")
        self.request_id = (
            given if given and _REQUEST_ID.fullmatch(given) else engine.new_request_id()
        )
        self.failed: list[AttemptRecord] = []
        self._began = request.received
        engine.recorder.request_started(endpoint.name)

    def answer(self) -> ClientResponse:
        """Serve the request; what fails becomes an error in OpenAI's form."""
        try:
            body = self._read_body()
            assert self.view is not None
            assert self.ask is not None
            server = self.view.snapshot.config.server
            if (
                self.ask.stream
                and self.endpoint.streams
                and (every_s := server.stream_keepalive_seconds)
            ):
                return answer_with_comments(
                    lambda: self._serve(body),
                    every_s=every_s,
                    headers=self._headers(None),
                    stopped=self._stopped,
                )
            return self._try_backends(body)
        except BaseException as error:  # noqa: BLE001 - it becomes an answer, or is raised again
            return self._failed(error)

    def _serve(self, body: bytes) -> ClientResponse:
        try:
            return self._try_backends(body)
        except BaseException as error:  # noqa: BLE001 - it becomes an answer, or is raised again
            return self._failed(error)

    def _stopped(self) -> bytes:
        fault = FAULTS["shutdown"]
        self.finish(fault)
        return error_event("The gateway is being stopped.", fault)

    def _failed(self, error: BaseException) -> ClientResponse:
        """What the client gets instead of an answer."""
        if isinstance(error, RequestFailed):
            return self._refuse(error)
        if isinstance(error, ClientGone):
            self.finish(FAULTS["client_gone"])
            return ClientResponse(499, self._headers(None), iter(()))
        if isinstance(error, Stopping):
            return self._refuse(
                RequestFailed(
                    "stopping", "The gateway is being stopped.", headers={"retry-after": "1"}
                )
            )
        if isinstance(error, Exception):
            log.error(
                "request failed inside the gateway", exc_info=error, extra={"id": self.request_id}
            )
            return self._refuse(
                RequestFailed("internal", "The gateway failed; its log tells more.")
            )
        self.finish(FAULTS["stopping"])
        raise error

    # Reading and checking

    def _read_body(self) -> bytes:
        request = self.request
        if request.headers.unusual:
            self._check_unusual()
        if request.method != "POST":
            raise RequestFailed(
                "method_not_allowed",
                f"{self.endpoint.path} takes POST, not {request.method}.",
                headers={"allow": "POST"},
            )
        first = request.headers.first
        if "via" in first and has_come_through(request.headers, self.engine.name):
            raise RequestFailed("loop_detected")
        given = first.get("content-type") or _JSON
        if given != _JSON and (media_type := given.partition(";")[0].strip().lower()) != _JSON:
            raise RequestFailed(
                "unsupported_media_type", f"The body must be application/json, not {media_type}."
            )
        view = self.view = self.engine.view()
        server = view.snapshot.config.server
        body = request.body
        if not isinstance(body, bytes):
            body = self._wait_for_body(body, server.max_request_bytes)
        load, most = self.engine.load, server.max_concurrent_requests
        if load.in_flight() > most and load.in_flight() - load.reading_bodies() > most:
            raise RequestFailed(
                "at_capacity",
                f"The gateway is serving {most} requests, its limit; try again shortly.",
                headers={"retry-after": "1"},
            )
        if self._coding is not None:
            body = content_coding.decode(
                body,
                self._coding,
                limit=server.max_request_bytes,
                hold=self._hold,
                pause=self._let_others_run,
            )
        if request.target.deployment is not None:
            body = openai_request.with_model_if_object(body, request.target.deployment)
        try:
            self.ask = openai_request.read(body, self.endpoint.required, task=self.endpoint.task)
        except InvalidBody as error:
            raise RequestFailed(
                "invalid_request" if error.json else "invalid_json", str(error), param=error.param
            ) from error
        if self._waited_s > _AT_ONCE_S:
            view = self.view = self.engine.view()
        model = self.asked_model = self.model = view.table.resolve(self.ask.model)
        if model not in view.snapshot.labels.models and view.model_label(model) == labels.UNKNOWN:
            self.engine.recorder.unknown_model()
        return body

    def _wait_for_body(
        self, read: Callable[[int, Callable[[int], None]], bytes], limit: int
    ) -> bytes:
        """A body that is still to come; the request does not count as one in progress meanwhile."""
        engine = self.engine
        began = engine.clock()
        engine.recorder.reading_body(1)
        try:
            return read(limit, self._hold)
        finally:
            engine.recorder.reading_body(-1)
            self._waited_s = engine.clock() - began

    def _hold(self, count: int) -> None:
        self.engine.buffers.hold(self.request, count)

    def _let_others_run(self) -> None:
        with contextlib.suppress(TimeoutError):
            self.request.watch.wait(None, 0, 0.0)

    def _check_unusual(self) -> None:
        """Check who sent it, if a browser did, and how its body is encoded."""
        given, allowed = self.request.headers.first, self.engine.cors().origins
        if not cross_origin.admits(given, allowed):
            raise RequestFailed("origin_refused", cross_origin.REFUSAL)
        self.cors = cross_origin.answer_headers(given.get("origin"), allowed)
        if "origin" in given and "content-type" not in given and self.request.method == "POST":
            raise RequestFailed(
                "unsupported_media_type",
                "A browser must name the content type, which is application/json.",
            )
        self._coding = content_coding.coding_of(given.get("content-encoding"))

    # Attempts

    def _try_backends(self, body: bytes) -> ClientResponse:
        """Try one backend after another until one answers; raises the last failure when none does."""
        view, ask = self.view, self.ask
        assert view is not None
        assert ask is not None
        request, server = self.request, view.snapshot.config.server
        flexible = "x-nexus-flexible" in request.headers.first and self._is_flexible()
        constraints = view.table.constraints(ask.model, self.asked_model)
        asked = RouteQuery(self.asked_model, ask.needs, constraints, flexible)
        waiter = Waiter(asked, request, request.received + server.request_timeout_seconds)
        engine = self.engine
        tried: set[tuple[str, str]] = set()
        failure: RequestFailed | None = None
        pauses = 0
        try:
            while True:
                try:
                    place = engine.admission.admit(waiter, tried=tried)
                except RequestFailed as none_left:
                    if failure is None:
                        raise
                    pauses += 1
                    if (
                        not tried
                        or none_left.fault.error_type == "queued"
                        or not self._pause(failure, pauses, waiter.deadline)
                    ):
                        raise failure from none_left
                    tried.clear()
                    continue
                choice = place.choice
                self._waited_s += place.waited_s
                if failure is not None:
                    assert self.choice is not None
                    engine.recorder.retried(self.choice.backend.label, failure.fault.error_type)
                self.choice, self.model = choice, choice.model
                self.attempts += 1
                began = self._attempt_began = engine.clock()
                try:
                    return self._attempt(place, ask, body)
                except RequestFailed as failed:
                    failure = failed
                    tried.add((choice.backend.name, choice.model))
                    took_s = engine.clock() - began
                    self._waited_s += took_s
                    self.failed.append(
                        AttemptRecord(
                            choice.backend.name,
                            choice.model[:LONGEST_NAME],
                            failure.fault.code,
                            milliseconds(took_s),
                        )
                    )
                if failure.fault is FAULTS["context_exceeded"] and choice.context_length:
                    waiter.query = msgspec.structs.replace(
                        waiter.query, longer_than=choice.context_length
                    )
                elif not failure.fault.retry:
                    raise failure
                log.warning(
                    "attempt failed",
                    extra={
                        "id": self.request_id,
                        "backend": choice.backend.name,
                        "fault": failure.fault.code,
                        "why": _why(failure, place.view.address(choice.backend)),
                    },
                )
                self._check_budget(failure, choice, waiter)
        finally:
            if waiter.evidence is not None:
                waiter.evidence.close()

    def _is_flexible(self) -> bool:
        """Whether a lower tier may serve where none of the demanded tier can."""
        header = self.request.header
        return _is_on(header("x-nexus-flexible")) and not _is_on(header("x-nexus-strict"))

    def _check_budget(self, failure: RequestFailed, choice: Choice, waiter: Waiter) -> None:
        """Raise the failure where the request, or the host, has spent what it may on further attempts."""
        max_retries = self.engine.view().snapshot.config.routing.max_retries
        if self.attempts > max_retries or self.engine.clock() >= waiter.deadline:
            raise failure
        if not self.engine.may_retry():
            self.engine.recorder.retry_denied(choice.backend.label)
            raise failure

    def _pause(self, failure: RequestFailed, nth: int, deadline: float) -> bool:
        """Wait before the same backends are asked again; False where that makes no sense, or would take too long."""
        if not failure.fault.retry_same:
            return False
        pause_s = backoff_s(nth, chance=self.engine.chance())
        if failure.fault.blame is Blame.BUSY:
            pause_s = max(
                pause_s, BUSY_S if failure.retry_after_s is None else failure.retry_after_s
            )
        if pause_s > LONGEST_PAUSE_S or self.engine.clock() + pause_s >= deadline:
            return False
        with contextlib.suppress(TimeoutError):
            self.request.watch.wait(None, 0, pause_s)
        self._waited_s += pause_s
        return True

    def _attempt(self, place: Reservation, ask: ParsedRequest, body: bytes) -> ClientResponse:
        """One backend: its whole answer, or a stream that has reached its first content; else the fault."""
        choice = place.choice
        try:
            view = self.view = place.view
            if choice.model != ask.model:
                body = openai_request.with_model(body, choice.model)
            attempt = Attempt(
                self.engine,
                self.request,
                place,
                timeout_s=view.snapshot.config.server.request_timeout_seconds,
                request_id=self.request_id,
            )
        except BaseException:
            place.release(FAULTS["internal"])
            raise
        try:
            streams = ask.stream and self.endpoint.streams
            wants_usage = streams and choice.backend.config.stream_usage
            attempt.send(
                self.endpoint.path, body, ask_usage=wants_usage and not asks_for_usage(body)
            )
            status = attempt.answer.status
            if not 200 <= status < 300:
                raise attempt.refused()
            if attempt.is_stream(asked=streams):
                every_s = view.snapshot.config.server.stream_keepalive_seconds
                stream = attempt.await_content(show_life=not every_s)
                place.mark_served()
                return self._stream(attempt, stream, choice)
            content = attempt.read_all()
            usage = attempt.usage_of_whole(content)
        except RequestFailed as failure:
            attempt.end(failure.fault, retry_after_s=failure.retry_after_s)
            raise
        except ClientGone:
            attempt.end(FAULTS["client_gone"])
            raise
        except Stopping:
            attempt.end(FAULTS["stopping"])
            raise
        except BaseException:
            attempt.end(FAULTS["internal"])
            raise
        attempt.end(None)
        self.usage, self.served = usage, True
        headers = self._headers(choice) + attempt.headers
        self._time_overhead(attempt)
        return self._whole(status, headers, content, None)

    # Answers

    def _whole(
        self, status: int, headers: list[tuple[str, str]], content: bytes, fault: Fault | None
    ) -> ClientResponse:
        headers.append(("content-length", str(len(content))))
        if self.request.method == "HEAD" or status == 204:
            # No server asks for the bytes of an answer that has none, so that its end would look like a client's.
            self.finish(fault, status)
            return ClientResponse(status, headers, iter(()))
        return ClientResponse(status, headers, WholeBody(self, content, fault, status))

    def _stream(self, attempt: Attempt, stream: Stream, choice: Choice) -> ClientResponse:
        """Relay a stream. Its head is out with its first byte, so a later failure is told within it."""
        self.stream, self.served, self.usage_asked = stream, True, attempt.usage_asked
        assert self.ask is not None
        self.ask = ParsedRequest(
            model=self.ask.model, stream=True
        )  # its needs hold the whole body, which may go now
        if self.request.held:
            self.engine.buffers.release(self.request)
        self.engine.recorder.stream_started()
        headers = self._headers(choice) + attempt.headers
        self._time_overhead(attempt)
        return ClientResponse(attempt.status, headers, StreamBody(self, attempt))

    def _time_overhead(self, attempt: Attempt) -> None:
        """Before: from the head to the sending, less what was waited for; after: from the answer to now."""
        self._before_s = max(
            0.0, attempt.sent_at - self._began - self._waited_s - attempt.refused_s
        )
        self._after_s = self.engine.clock() - attempt.answered_at

    def report_first_token(self, at: float) -> None:
        """The first piece of a stream's content came, on the engine's clock."""
        assert self.view is not None
        assert self.choice is not None
        self.engine.recorder.first_token(
            self.view.model_label(self.model), self.choice.backend.label, at - self._began
        )

    def _refuse(self, failure: RequestFailed) -> ClientResponse:
        if failure.passed_on is not None and failure.fault.status is None:
            passed = failure.passed_on
            headers = self._headers(self.choice) + passed.headers
            if failure.fault.blame is Blame.BUSY and failure.retry_after_s is None:
                headers.append(("retry-after", "1"))  # for so long it counts as busy here
            return self._whole(passed.status, headers, passed.body, failure.fault)
        status = failure.fault.status or 502
        content = error_body(
            failure.message,
            status=status,
            code=failure.fault.code,
            param=failure.param,
            context=failure.context,
        )
        headers = [
            *self._headers(self.choice),
            ("content-type", "application/json"),
            *failure.headers.items(),
        ]
        if status >= 500 and "retry-after" not in failure.headers:
            headers.append(
                ("x-should-retry", "false")
            )  # OpenAI's clients would: what could be tried was tried here
        return self._whole(status, headers, content, failure.fault)

    def _headers(self, choice: Choice | None) -> list[tuple[str, str]]:
        headers = [("x-request-id", self.request_id), *self.cors]
        if choice is not None:
            assert self.view is not None
            headers += self.view.route_headers(choice.backend, choice.reason)
            if choice.model != self.asked_model:
                headers.append(("x-nexus-fallback-model", header_text(choice.model)))
        return headers

    # The end

    def finish(self, fault: Fault | None, status: int | None = None) -> None:
        """Record the outcome of the request. Only the first call counts."""
        if self.finished:
            return
        self.finished = True
        if self.request.held:
            self.engine.buffers.release(self.request)
        outcome = self._outcome(fault, status or (fault.status if fault else None) or 502)
        for read in self.engine.outcome_readers:
            read(outcome)

    def _outcome(self, fault: Fault | None, status: int) -> Outcome:
        ended = self.engine.clock()
        view, choice, stream = self.view, self.choice, self.stream
        label = view.model_label if view is not None else (lambda _: labels.UNKNOWN)
        usage, source = self._usage()
        return Outcome(
            request_id=self.request_id,
            endpoint=self.endpoint.name,
            requested_model=self.ask.model if self.ask is not None else "",
            model=self.model,
            model_label=label(self.model),
            backend=choice.backend.name if choice else None,
            backend_label=choice.backend.label if choice else labels.NONE,
            reason=choice.reason if choice else None,
            status=status,
            fault=fault,
            ended=ended,
            duration_s=ended - self._began,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            usage=source,
            fallback_from=label(self.asked_model)
            if self.served and self.model != self.asked_model
            else None,
            stream=stream_outcome(stream, fault, usage, received=self._began) if stream else None,
            failed_attempts=self.failed,
            last_attempt_s=ended - self._attempt_began
            if len(self.failed) < self.attempts
            else None,
            before_s=self._before_s,
            after_s=self._after_s if self.served else None,
        )

    def _usage(self) -> tuple[Usage, str | None]:
        """The tokens that the client's answer took, and where they are known from."""
        stream = self.stream
        if stream is None:
            return self.usage or Usage(), (
                "reported" if self.usage else "none"
            ) if self.served else None
        if stream.usage is not None:
            return stream.usage, "requested" if self.usage_asked else "reported"
        counted = stream.counted_tokens()
        return (Usage(completion_tokens=counted), "counted") if counted else (Usage(), "none")


def _is_on(header: str | None) -> bool:
    """Whether a header that says yes or no was given, and says yes."""
    return header is not None and header.strip().lower() not in ("false", "0", "no")


class WholeBody(msgspec.Struct):
    """The bytes of a whole answer; records the request when they are written, or when the client is gone before."""

    exchange: Exchange
    content: bytes
    fault: Fault | None
    status: int
    given: bool = False

    def __iter__(self) -> WholeBody:
        return self

    def __next__(self) -> bytes:
        # Asked for more, the server has written what it got before, which was everything.
        if self.given:
            self.written()
            raise StopIteration
        self.given = True
        return self.content

    def written(self) -> None:
        self.exchange.finish(self.fault, self.status)

    def close(self) -> None:
        """Called by the server when it is done, however that came; before the end, it means that the client is gone."""
        self.exchange.finish(FAULTS["client_gone"])


def _why(failure: RequestFailed, address: Address) -> str:
    """What the log says of a failure: also why no connection came about, which clients are not told."""
    cause = failure.__cause__
    if cause is None or failure.fault.code not in _CONNECTING:
        return failure.message
    return f"{failure.message} ({reason(cause, address)})"
