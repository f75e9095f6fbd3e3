"""One request's life: checked, routed, attempted, relayed, and finished exactly once, whatever happened.

It takes a request whose head was read and gives a response head and an iterator of bytes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator

from nexus.errors import FAULTS, Fault, PassedOn, RequestFailed, error_body, fault_of_answer, status_label
from nexus.metrics import labels
from nexus.metrics.recorder import Finished
from nexus.proxy.attempt import Attempt, StreamError
from nexus.proxy.client import ClientGone, Request
from nexus.proxy.engine import Answer, Endpoint, Engine
from nexus.proxy.headers import answer_headers, header_text
from nexus.proxy.sse import Usage, usage_of
from nexus.proxy.view import View
from nexus.routing import requirements
from nexus.routing.requirements import Ask
from nexus.routing.router import Choice, choose

log = logging.getLogger("nexus.proxy")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SHOWN_NAME = 200


class Exchange:
    """Serves one request through `answer()`. Whichever end comes first calls `finish()`, and only that call counts."""

    def __init__(self, engine: Engine, request: Request, endpoint: Endpoint) -> None:
        self.engine = engine
        self.request = request
        self.endpoint = endpoint
        given = request.header("x-request-id") or ""
        self.request_id = given if _REQUEST_ID.fullmatch(given) else engine.new_request_id()
        self.view: View | None = None
        self.ask: Ask | None = None
        self.model = ""
        self.asked_model = ""
        self.choice: Choice | None = None
        self.attempts = 0
        self.usage: Usage | None = None
        self.served = False
        self.streaming = False
        self.finished = False
        engine.recorder.started(endpoint.name)

    def answer(self) -> Answer:
        """Serve the request; what fails becomes an error in OpenAI's form."""
        try:
            body = self._read_body()
            return self._try_backends(body)
        except RequestFailed as failure:
            return self._refuse(failure)
        except ClientGone:
            self.finish(FAULTS["client_gone"])
            return Answer(499, self._headers(None), iter(()))
        except Exception:
            log.exception("request failed inside the gateway", extra={"id": self.request_id})
            return self._refuse(RequestFailed("internal", "The gateway failed; its log tells more."))
        except BaseException:
            self.finish(FAULTS["shutdown"])
            raise

    # Reading and checking

    def _read_body(self) -> bytes:
        request = self.request
        if request.method != "POST":
            raise RequestFailed(
                "method_not_allowed",
                f"{self.endpoint.path} takes POST, not {request.method}.",
                headers={"allow": "POST"},
            )
        media_type = (request.header("content-type") or "application/json").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise RequestFailed("unsupported_media_type", f"The body must be application/json, not {media_type}.")
        self.view = self.engine.view()
        server = self.view.snapshot.config.server
        if self.engine.load.in_flight() > server.max_concurrent_requests:
            raise RequestFailed(
                "at_capacity",
                f"The gateway is serving {server.max_concurrent_requests} requests, its limit; try again shortly.",
                headers={"retry-after": "1"},
            )
        body = request.body(server.max_request_bytes)
        try:
            self.ask = requirements.read(body, self.endpoint.required)
        except requirements.InvalidBody as error:
            raise RequestFailed(
                "invalid_request" if error.json else "invalid_json", str(error), param=error.param
            ) from error
        self.asked_model = self.model = self.view.table.resolve(self.ask.model)
        if self.view.model_label(self.model) == labels.UNKNOWN:
            self.engine.recorder.unknown_model()
        return body

    # Attempts

    def _try_backends(self, body: bytes) -> Answer:
        """Try one backend after another until one answers; raises the last failure when none does."""
        view, ask = self.view, self.ask
        assert view is not None
        assert ask is not None
        tried: set[tuple[str, str]] = set()
        failure: RequestFailed | None = None
        retried: tuple[str, str] | None = None
        while len(tried) <= view.snapshot.config.routing.max_retries:
            try:
                choice = choose(
                    view.table,
                    model=self.asked_model,
                    needs=ask.needs,
                    tried=tried,
                    load=self.engine.load.pending,
                    turn=self.engine.next_turn(),
                    chance=self.engine.chance(),
                )
            except RequestFailed as no_route:
                raise failure or no_route from no_route
            if retried is not None:
                self.engine.recorder.retried(*retried)
            self.choice, self.model = choice, choice.model
            tried.add((choice.backend.name, choice.model))
            self.attempts += 1
            try:
                return self._attempt(choice, ask, body)
            except RequestFailed as failed:
                if not failed.fault.retry:
                    raise
                failure = failed
                retried = choice.backend.label, failed.fault.error_type
                log.warning(
                    "attempt failed",
                    extra={
                        "id": self.request_id,
                        "backend": choice.backend.name,
                        "fault": failed.fault.name,
                        "why": failed.message,
                    },
                )
            view = self.view = self.engine.view()
        assert failure is not None
        raise failure

    def _attempt(self, choice: Choice, ask: Ask, body: bytes) -> Answer:
        """One backend: its whole answer, or a stream that has reached its first content; else the fault."""
        assert self.view is not None
        if choice.model != ask.model:
            body = requirements.with_model(body, choice.model)
        attempt = Attempt(
            self.engine,
            self.request,
            choice.backend,
            address=self.view.addresses[choice.backend.name],
            timeout_s=self.view.snapshot.config.server.request_timeout_seconds,
            request_id=self.request_id,
        )
        try:
            attempt.send(self.endpoint.path, body)
            fault = fault_of_answer(attempt.status)
            if fault is None and attempt.event_stream:
                attempt.await_content()
                return self._stream(attempt, choice)
            content = attempt.read_all()
            if fault is not None:
                raise RequestFailed(
                    fault,
                    f"Backend {choice.backend.name} answered {attempt.status}.",
                    passed_on=PassedOn(attempt.status, answer_headers(attempt.headers), content),
                )
        except RequestFailed as failure:
            attempt.end(failure.fault)
            raise
        except BaseException:
            attempt.end(FAULTS["client_gone"])
            raise
        attempt.end(None)
        self.usage, self.served = usage_of(content), True
        headers = self._headers(choice) + answer_headers(attempt.headers)
        return self._whole(attempt.status, headers, content, None)

    # Answers

    def _whole(self, status: int, headers: list[tuple[str, str]], content: bytes, fault: Fault | None) -> Answer:
        headers.append(("content-length", str(len(content))))
        if self.request.method == "HEAD" or status == 204:
            # No server asks for the bytes of an answer that has none, so that its end would look like a client's.
            self.finish(fault, status)
            return Answer(status, headers, iter(()))
        return Answer(status, headers, AnswerBody(self, iter((content,)), lambda: (fault, status)))

    def _stream(self, attempt: Attempt, choice: Choice) -> Answer:
        """Relay a stream. Its head is out with its first byte, so a later failure is told within it."""
        self.streaming = self.served = True
        outcome: tuple[Fault | None, int] = (None, attempt.status)

        def relay() -> Iterator[bytes]:
            nonlocal outcome
            ended: Fault | None = FAULTS["client_gone"]
            try:
                yield from attempt.stream()
                ended = None
            except RequestFailed as failure:
                ended, outcome = failure.fault, (failure.fault, failure.fault.status or 502)
                if not isinstance(failure, StreamError):
                    yield b"data: " + error_body(failure.message, status=outcome[1], code=ended.code) + b"\n\n"
            finally:
                self.usage = attempt.usage
                attempt.end(ended)

        headers = self._headers(choice) + answer_headers(attempt.headers)
        return Answer(attempt.status, headers, AnswerBody(self, relay(), lambda: outcome, attempt))

    def _refuse(self, failure: RequestFailed) -> Answer:
        if failure.passed_on is not None and failure.fault.status is None:
            passed = failure.passed_on
            return self._whole(passed.status, self._headers(self.choice) + passed.headers, passed.body, failure.fault)
        status = failure.fault.status or 502
        content = error_body(
            failure.message, status=status, code=failure.fault.code, param=failure.param, context=failure.context
        )
        headers = [*self._headers(self.choice), ("content-type", "application/json"), *failure.headers.items()]
        return self._whole(status, headers, content, failure.fault)

    def _headers(self, choice: Choice | None) -> list[tuple[str, str]]:
        headers = [("x-request-id", self.request_id)]
        if choice is not None:
            backend = choice.backend
            headers += [
                ("x-nexus-backend", header_text(backend.name)),
                ("x-nexus-backend-type", "cloud" if backend.cloud else "local"),
                ("x-nexus-route-reason", choice.reason),
                ("x-nexus-privacy-zone", "restricted" if backend.restricted else "open"),
            ]
            if choice.model != self.asked_model:
                headers.append(("x-nexus-fallback-model", header_text(choice.model)))
        return headers

    # The end

    def finish(self, fault: Fault | None, status: int | None = None) -> None:
        """Record the request: figures first, then the log line. Only the first call counts."""
        if self.finished:
            return
        self.finished = True
        status = status or (fault.status if fault else None) or 502
        duration_s = self.engine.clock() - self.request.received
        view, choice = self.view, self.choice
        label = view.model_label if view is not None else (lambda _: labels.UNKNOWN)
        fell_back = self.served and self.model != self.asked_model
        usage = self.usage or Usage()
        self.engine.recorder.finished(
            Finished(
                model=label(self.model),
                backend=choice.backend.label if choice else labels.NONE,
                status=status_label(status),
                duration_s=duration_s,
                error_type=fault.error_type if fault else None,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                fallback_from=label(self.asked_model) if fell_back else None,
            )
        )
        log.info(
            "request",
            extra={
                "id": self.request_id,
                "endpoint": self.endpoint.name,
                "model": self.model[:_SHOWN_NAME] or None,
                "backend": choice.backend.name if choice else None,
                "status": status,
                "duration_ms": round(duration_s * 1000, 1),
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "attempts": self.attempts,
                "stream": self.streaming,
                "why": choice.reason if choice else None,
                "fault": fault.name if fault else None,
            },
        )


class AnswerBody:
    """The bytes of an answer; records the request when they are all written, or when the client is gone before."""

    def __init__(
        self,
        exchange: Exchange,
        chunks: Iterator[bytes],
        outcome: Callable[[], tuple[Fault | None, int]],
        attempt: Attempt | None = None,
    ) -> None:
        """`attempt` is one that is still open, to be ended with the answer even where no byte of it was asked for."""
        self._exchange = exchange
        self._chunks = chunks
        self._outcome = outcome
        self._attempt = attempt

    def __iter__(self) -> AnswerBody:
        return self

    def __next__(self) -> bytes:
        # Asked for more, the server has written what it got before: at the end, that was everything.
        try:
            return next(self._chunks)
        except StopIteration:
            self._exchange.finish(*self._outcome())
            raise
        except ClientGone:
            self._exchange.finish(FAULTS["client_gone"])
            raise StopIteration from None
        except BaseException:
            self._exchange.finish(FAULTS["shutdown"])
            raise

    def close(self) -> None:
        """Called by the server when it is done, however that came; before the end, it means that the client is gone."""
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()
        if self._attempt is not None:
            self._attempt.end(FAULTS["client_gone"])
        self._exchange.finish(FAULTS["client_gone"])
