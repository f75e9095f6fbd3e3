"""One request from its arrival to its recorded end: its state, and what it holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from msgspec.structs import replace

from nexus.access.callers import UNIDENTIFIED, Caller
from nexus.dialects.base import ParsedRequest, StreamReader, TokenEstimate, Usage
from nexus.dialects.estimate import choices_in, estimate_tokens
from nexus.dialects.form_reader import FormField
from nexus.errors import Fault, RequestFailed
from nexus.fleet.history import LONGEST_NAME
from nexus.fleet.outcome import AttemptRecord, Charge, Outcome, milliseconds
from nexus.http.cross_origin import Headers
from nexus.metrics import labels
from nexus.proxy import costs
from nexus.proxy.admission import Reservation
from nexus.proxy.attempt import Attempt
from nexus.proxy.engine import Engine
from nexus.proxy.fleet_view import NO_FLEET, View
from nexus.proxy.outcome import stream_outcome
from nexus.proxy.own_error import REQUEST_ID
from nexus.proxy.request import Request
from nexus.proxy.upload import Upload
from nexus.routing.router import Choice

log = logging.getLogger("nexus.proxy")

_NOT_PARSED = ParsedRequest(model="")


class HeldBudgets(Protocol):
    """The budgets that hold for a request."""

    def allows(self, model: str) -> bool:
        """Whether they have room for a fallback, as far as that is known."""

    def hold_for(self, model: str) -> bool:
        """Hold what a fallback can cost; returns False if they refuse it."""


class Exchange:
    """The state of one request. The checks fill it first, then the attempts.

    Attributes:
        view: The fleet that the request is served from; before the body is read, an empty one.
        caller: Who sends it; None without `[auth]`.
        own_headers: The headers of every response to this request, whoever serves it.
        limited: Whether limits hold for it, so that those of a backend are not shown.
        budgets: The budgets that hold for it; None without any.
        without_cloud: Whether no cloud backend may serve it, since [routing.budget] is spent.
        body: The decoded body, empty once a backend's response has started.
        model: The model that serves the request, or shall serve it.
        resolved_model: The model to which the client's name resolves.
        choice: The backend of the last attempt, and why it was chosen.
        failed: The attempts that failed.
        upload: The form, until a backend's response has started; None if the body is no form.
        sealed: The names of what the request holds encrypted, and of its session, if backends have
            several accounts.
        background: The id of the response that the backend makes in the background, if budgets
            hold for it.
        form_model: The field of the form that names the model.
        usage: The tokens of a whole response; None if it reports none.
        units: The units of a whole response, or of the request, if its endpoint counts them.
        served: Whether a backend's response goes to the client.
        waited_s: How long the gateway waited: for the body, in the queue, at failed attempts.
    """

    view: View = NO_FLEET
    parsed: ParsedRequest = _NOT_PARSED
    caller: Caller | None = None
    own_headers: Headers = []
    limited = False
    budgets: HeldBudgets | None = None
    without_cloud = False
    body = b""
    model = ""
    resolved_model = ""
    choice: Choice | None = None
    upload: Upload | None = None
    sealed: tuple[str | None, str | None] = (None, None)
    background: str | None = None
    form_model: FormField | None = None
    usage: Usage | None = None
    units = 0.0
    stream: StreamReader | None = None
    served = False
    waited_s = 0.0
    _estimate: TokenEstimate | None = None
    _charge: Charge | None = None
    _usage_requested = False
    _attempt_started: float | None = None
    _before_s: float | None = None
    _after_s: float | None = None
    _releases: list[Callable[[], object]] | None = None
    _finished = False

    def __init__(self, engine: Engine, request: Request) -> None:
        self.engine = engine
        self.request = request
        self.endpoint = request.target.endpoint
        given = request.headers.first.get("x-request-id")
        self.request_id = (
            given if given and REQUEST_ID.fullmatch(given) else engine.new_request_id()
        )
        self.failed: list[AttemptRecord] = []

    # What the request holds

    def on_release(self, release: Callable[[], object]) -> None:
        """Call `release` once: when the request is refused, or has ended."""
        if self._releases is None:
            self._releases = []
        self._releases.append(release)

    def release(self) -> None:
        """Release all that the request holds, in reverse order. May be called again."""
        if self.request.held:
            self.engine.buffers.release(self.request)
        while self._releases:
            try:
                self._releases.pop()()
            except Exception:
                log.exception("a release failed", extra={"id": self.request_id})

    # Attempts

    def start_attempt(self, reservation: Reservation) -> None:
        self.view, self.choice = reservation.view, reservation.choice
        self.model = reservation.choice.model
        self.waited_s += reservation.waited_s
        self._attempt_started = self.engine.clock()

    def attempt_failed(self, choice: Choice, failure: RequestFailed) -> None:
        started, self._attempt_started = self._attempt_started, None
        took_s = self.engine.clock() - (started or 0.0)
        self.waited_s += took_s
        self.failed.append(
            AttemptRecord(
                choice.backend.name,
                choice.model[:LONGEST_NAME],
                failure.fault.code,
                milliseconds(took_s),
            )
        )

    def response_started(self, attempt: Attempt) -> None:
        """The backend's response goes to the client now.

        The overhead before is from the request's head to the sending, without the waiting; the
        overhead after is from the response to now.
        """
        self.served, self.stream = True, attempt.stream
        self._usage_requested = attempt.usage_asked
        if self.view.prices is not None and (
            self.usage is None or self.usage.prompt_tokens is None
        ):
            self.token_estimate()
        self.body = b""
        if self.upload is not None:
            self.upload.close()
        self._before_s = max(
            0.0, attempt.sent_at - self.request.received - self.waited_s - attempt.refused_s
        )
        self._after_s = self.engine.clock() - attempt.responded_at

    def report_first_token(self, at: float) -> None:
        """Record when the first content of the stream arrived, on the engine's clock."""
        backend = self.choice.backend.label if self.choice else labels.NONE
        self.engine.recorder.first_token(
            self.view.model_label(self.model), backend, at - self.request.started
        )

    def report_ping(self) -> None:
        """The client got a ping of the gateway's own."""
        self.engine.recorder.stream_ping()

    # The end

    def finish(self, fault: Fault | None, status: int | None = None) -> None:
        """Record the outcome and release what the request holds. Only the first call counts."""
        if self._finished:
            return
        self._finished = True
        try:
            outcome = self._outcome(fault, status or (fault.status if fault else None) or 502)
            for read in self.engine.outcome_readers:
                read(outcome)
        finally:
            self.release()

    def _outcome(self, fault: Fault | None, status: int) -> Outcome:
        ended, started = self.engine.clock(), self.request.started
        choice, stream = self.choice, self.stream
        label = self.view.model_label
        usage, source = self.known_usage()
        # CPython builds a dict for a call with more than 15 keyword arguments, which takes eight
        # times as long; so the rest is assigned.
        outcome = Outcome(
            request_id=self.request_id,
            endpoint=self.endpoint.name,
            requested_model=self.parsed.model,
            model=self.model,
            model_label=label(self.model),
            backend=choice.backend.name if choice else None,
            backend_label=choice.backend.label if choice else labels.NONE,
            reason=choice.reason if choice else None,
            status=status,
            fault=fault,
            ended=ended,
            duration_s=ended - started,
            usage=source,
            failed_attempts=self.failed,
        )
        outcome.prompt_tokens = usage.prompt_tokens
        outcome.completion_tokens = usage.completion_tokens
        outcome.cached_tokens = usage.cached_tokens
        outcome.reasoning_tokens = usage.reasoning_tokens
        outcome.cache_write_tokens = usage.cache_write_tokens
        outcome.affinity = choice.affinity if choice else None
        outcome.before_s, outcome.after_s = self._before_s, self._after_s
        caller = self.caller
        if caller is None and self.view is NO_FLEET:  # refused by its head alone
            view = self.engine.fleet.current() or NO_FLEET
            caller = None if view.callers is None else UNIDENTIFIED
        if caller is not None:
            outcome.key, outcome.team = caller.key, caller.team
            outcome.key_label, outcome.team_label = caller.key_label, caller.team_label
        if self.view.prices is not None:
            outcome.charge = self.charge()
        if choice is not None and choice.translation is not None:
            outcome.translation = choice.translation
        if (units := self.endpoint.units) is not None:
            outcome.units = units.name, self.served_units()
        if self._attempt_started is not None:
            outcome.last_attempt_s = ended - self._attempt_started
        if self.served and self.model != self.resolved_model:
            outcome.fallback_from = label(self.resolved_model)
        if stream is not None:
            outcome.stream = stream_outcome(
                stream, fault, usage, started=started, counted=source == "counted"
            )
        return outcome

    @property
    def within_attempt(self) -> bool:
        """Whether an attempt was started, and has not failed."""
        return self._attempt_started is not None

    def token_estimate(self) -> TokenEstimate:
        """The estimate of what the request takes. It needs the body once."""
        fields, form = self.parsed.fields, self.endpoint.form
        if self.endpoint.body != "json" or not self.endpoint.by_model:
            return TokenEstimate(0, 0, choices_in(fields)) if fields else _NO_TOKENS
        if self._estimate is None:
            self._estimate = estimate_tokens(fields, len(self.body), form)
        return self._estimate

    @property
    def estimated_prompt(self) -> int:
        """The tokens of its prompt as its limits have reserved them; 0 if they reserve none."""
        return self._estimate.prompt if self._estimate is not None else 0

    def served_units(self) -> float:
        """The units of the response, or of the request, that its endpoint counts."""
        if not self.served:
            return 0.0
        return self.units or (self.stream.units if self.stream is not None else 0.0)

    def charge(self) -> Charge | None:
        """What the request costs; None without prices. To be asked when that is known."""
        prices, choice = self.view.prices, self.choice
        if prices is None or self._charge is not None:
            return self._charge
        charge = Charge()
        if (
            choice is not None
            and self.endpoint.takes_tokens
            and (self.served or self.within_attempt)
        ):
            charge = costs.charge(
                prices,
                choice.backend,
                self.model,
                usage=self.known_usage()[0],
                served=self.served,
                estimated_prompt=lambda: self.token_estimate().prompt,
                images=round(self.served_units()) if self.endpoint.makes_images else 0,
                seconds=self.engine.clock() - (self._attempt_started or 0.0),
            )
        if self.failed:
            charge = replace(charge, retried=costs.retried(self.view, prices, self.failed))
        self._charge = charge
        return charge

    def known_usage(self) -> tuple[Usage, str | None]:
        """The tokens of the response, and the source of their counts."""
        stream, usage = self.stream, self.usage
        if not self.endpoint.takes_tokens:
            return _NO_USAGE, None  # those of a stored response were counted when it was made
        if stream is None:
            if not self.served:
                return _NO_USAGE, None
            return (usage, "reported") if usage else (_NO_USAGE, "none")
        usage = stream.usage
        if usage is None or not stream.finished:
            counted = stream.counted_tokens()
            if usage is None or counted > (usage.completion_tokens or 0):
                # A stream that broke off, or never reports. Anthropic's begin with one token.
                used = replace(usage or _NO_USAGE, completion_tokens=counted or None)
                return used, "counted" if counted else "none"
        return usage, "requested" if self._usage_requested else "reported"


_NO_USAGE = Usage()
_NO_TOKENS = TokenEstimate(0, 0)
