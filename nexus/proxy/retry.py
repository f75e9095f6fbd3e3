"""The attempts of a request: one backend after another, until one serves it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import msgspec

from nexus.dialects.base import InvalidBody
from nexus.dialects.form_reader import FormField
from nexus.dialects.json_body import without_fields
from nexus.errors import FAULTS, Blame, RequestFailed
from nexus.http.address import Address
from nexus.http.connect_errors import reason
from nexus.http.credentials import CREDENTIALS
from nexus.proxy.admission import Reservation, Waiter
from nexus.proxy.attempt import Attempt, fault_of
from nexus.proxy.costs import cost_header, estimate_header
from nexus.proxy.engine import ClientResponse
from nexus.proxy.exchange import Exchange, HeldBudgets
from nexus.proxy.passive_health import BUSY_S
from nexus.proxy.request import invalid_body
from nexus.proxy.responses import stream_response, whole_response
from nexus.proxy.session import session_reader
from nexus.proxy.sticky import homes_of, remember_whole
from nexus.proxy.upload import Upload
from nexus.routing.context import RouteQuery
from nexus.routing.policies import NO_CLOUD
from nexus.routing.refusal import unavailable
from nexus.routing.retries import LONGEST_PAUSE_S, backoff_s
from nexus.routing.router import Choice
from nexus.runtime.text import mask_quotes

log = logging.getLogger("nexus.proxy")

CONNECTING = frozenset({"connect_failed", "connect_timeout", "dns_failed", "tls_failed"})
"""Faults of a backend that cannot be reached."""

UNTRANSLATABLE = frozenset({"not_translatable", "response_not_stored"})
"""Faults of requests that only a backend which speaks the client's API can serve."""

_MOST_SEARCHED = 128 * 1024
"""Bytes of a request in which quotes are looked for; searching longer ones would stall others."""


def serve_by_backends(exchange: Exchange) -> ClientResponse:
    """Try backends until one responds. Raises the last failure if none does."""
    waiter = _waiter(exchange)
    try:
        return _try_until_served(exchange, waiter)
    except RequestFailed as failure:
        if waiter.query.only is not None and failure.fault.code in CONNECTING:
            raise unavailable(*sorted(waiter.query.only)) from failure
        raise
    finally:
        if waiter.evidence is not None:
            waiter.evidence.close()


def _waiter(exchange: Exchange) -> Waiter:
    request, view, parsed = exchange.request, exchange.view, exchange.parsed
    counts = exchange.endpoint.counts
    flexible = (
        "x-nexus-flexible" in request.headers.first
        and _is_on(request.header("x-nexus-flexible"))
        and not _is_on(request.header("x-nexus-strict"))
    )
    constraints = view.table.constraints(parsed.model, exchange.resolved_model)
    if exchange.without_cloud:
        constraints |= NO_CLOUD
    caller = exchange.caller
    allows: Callable[[str], bool] | None = caller.may_use_model if caller is not None else None
    if (budgets := exchange.budgets) is not None:
        allows = _allowed_by(allows, budgets)
    query = RouteQuery(
        exchange.resolved_model,
        parsed.needs,
        constraints,
        flexible,
        allows=allows,
        only=homes_of(exchange) if exchange.endpoint.ids is not None else None,
        session=session_reader(exchange) if view.table.uses_affinity and not counts else None,
    )
    timeout_s = view.snapshot.config.server.request_timeout_seconds
    waiter = Waiter(query, request, request.received + timeout_s)
    waiter.takes_capacity = not counts
    if caller is not None:
        waiter.may_go_first = caller.may_go_first
    if view.fair_queue and caller is not None and not counts:
        share = waiter.share = exchange.engine.fair_shares.of(caller)
        exchange.on_release(lambda: share.ended(_tokens(exchange)))
    return waiter


def _tokens(exchange: Exchange) -> int | None:
    """The tokens that a request took, as far as they are known; None if nothing is."""
    usage, source = exchange.known_usage()
    if source is None:
        return 0
    if source == "none":
        return None
    return (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)


def _allowed_by(
    allows: Callable[[str], bool] | None, budgets: HeldBudgets
) -> Callable[[str], bool]:
    """Whether a fallback is allowed, and its cost too."""
    if allows is None:
        return budgets.allows
    return lambda model: allows(model) and budgets.allows(model)


def _is_on(header: str | None) -> bool:
    """Whether a yes-or-no header was given, and says yes."""
    return header is not None and header.strip().lower() not in ("false", "0", "no")


def _try_until_served(exchange: Exchange, waiter: Waiter) -> ClientResponse:
    engine = exchange.engine
    tried: set[tuple[str, str]] = set()
    failure: RequestFailed | None = None
    last: RequestFailed | None = None
    choice: Choice | None = None
    pauses = 0
    try:
        while True:
            try:
                reservation = engine.admission.admit(waiter, tried=tried)
            except RequestFailed as none_left:
                if failure is None:
                    raise
                if failure.fault.code in UNTRANSLATABLE and none_left.fault.status == 503:
                    raise none_left from failure  # a backend that needs no translation is not ready
                pauses += 1
                if (
                    not tried
                    or none_left.fault.error_type == "queued"
                    or not _pause(exchange, failure, pauses, waiter.deadline)
                ):
                    if choice is not None:  # not that of a later one, which got nothing
                        exchange.choice, exchange.model = choice, choice.model
                    raise failure from none_left
                tried.clear()
                continue
            if (
                (budgets := exchange.budgets) is not None
                and reservation.choice.model != exchange.resolved_model
                and not budgets.hold_for(reservation.choice.model)
            ):
                # Another request has taken the money since it was looked at.
                reservation.release(FAULTS["insufficient_quota"])
                continue
            if failure is not None and exchange.choice is not None:
                fault = FAULTS[exchange.failed[-1].outcome]
                engine.recorder.retried(
                    exchange.choice.backend.label,
                    fault.error_type,
                    sent=fault.code not in UNTRANSLATABLE,
                )
            exchange.start_attempt(reservation)
            try:
                return _attempt(exchange, reservation)
            except RequestFailed as failed:
                last = failed
            if failure is None or last.fault.code not in UNTRANSLATABLE:
                failure, choice = last, reservation.choice  # one that was sent says more
            tried.add((reservation.choice.backend.name, reservation.choice.model))
            exchange.attempt_failed(reservation.choice, last)
            if not _may_retry(exchange, reservation, last, waiter):
                raise failure
    finally:
        # Its traceback has this frame: the cycle would keep the request until the next collection.
        failure = last = None


def _pause(exchange: Exchange, failure: RequestFailed, nth: int, deadline: float) -> bool:
    """Wait before the same backends are tried again; False if that cannot help or is too long."""
    if not failure.fault.retry_same:
        return False
    pause_s = backoff_s(nth, chance=exchange.engine.chance())
    if failure.fault.blame is Blame.BUSY:
        pause_s = max(pause_s, BUSY_S if failure.retry_after_s is None else failure.retry_after_s)
    if pause_s > LONGEST_PAUSE_S or exchange.engine.clock() + pause_s >= deadline:
        return False
    with contextlib.suppress(TimeoutError):
        exchange.request.watch.wait(None, 0, pause_s)
    exchange.waited_s += pause_s
    return True


def _may_retry(
    exchange: Exchange, reservation: Reservation, failure: RequestFailed, waiter: Waiter
) -> bool:
    """Whether another backend may be tried, by the fault and by the retry budgets.

    What has no translation was not sent. It needs no budget, and other translations of it no try.
    """
    choice, engine = reservation.choice, exchange.engine
    if failure.fault.code in UNTRANSLATABLE:
        waiter.query = msgspec.structs.replace(waiter.query, native=True)
        return True
    if failure.fault is FAULTS["context_exceeded"] and choice.context_length:
        waiter.query = msgspec.structs.replace(waiter.query, longer_than=choice.context_length)
    elif not failure.fault.retry:
        return False
    log.warning(
        "attempt failed",
        extra={
            "id": exchange.request_id,
            "backend": choice.backend.name,
            "fault": failure.fault.code,
            "why": _why(failure, reservation.view.address(choice.backend), exchange),
        },
    )
    max_retries = engine.view().snapshot.config.routing.max_retries
    sent = sum(one.outcome not in UNTRANSLATABLE for one in exchange.failed)
    if sent > max_retries or engine.clock() >= waiter.deadline:
        return False
    if not engine.may_retry():
        engine.recorder.retry_denied(choice.backend.label)
        return False
    return True


def _why(failure: RequestFailed, address: Address, exchange: Exchange) -> str:
    """The reason of a failure for the log, with the cause of a failed connection.

    The log has no content and no key, so what a backend quotes of the request is masked. For a long
    request, all of the backend's words are left out.
    """
    message = failure.message
    if failure.fault.code in CONNECTING:
        cause = failure.__cause__
        return message if cause is None else f"{message} ({reason(cause, address)})"
    if len(exchange.body) > _MOST_SEARCHED:
        return message.partition(": ")[0]
    keys = [value for name, value in exchange.request.headers.pairs if name in CREDENTIALS]
    source = "\n".join(keys).encode(errors="replace") + exchange.body
    return mask_quotes(message, source, keep=f"{exchange.parsed.model} {exchange.model}")


def _with_model(exchange: Exchange, model: str) -> bytes:
    """The body for a backend that serves the model by this name."""
    try:
        return exchange.endpoint.dialect.replace_model(exchange.body, model)
    except InvalidBody as error:
        raise invalid_body(error) from error


def _rename(upload: Upload, field: FormField | None, model: str) -> None:
    """Make a form name the model as the backend does."""
    if field is not None:
        upload.replace(field, model)


def _body_for(exchange: Exchange, choice: Choice, model: str) -> bytes:
    """The body that a backend gets, or that is translated for it; of a form, an empty one."""
    endpoint, config, body = exchange.endpoint, choice.backend.config, exchange.body
    if model != exchange.parsed.model and exchange.upload is None:
        body = _with_model(exchange, model)
    if endpoint.strip is not None and config.strips_attribution:
        body = endpoint.strip(body)
    if endpoint.strip_made is not None and choice.translation is None:
        body = endpoint.strip_made(body)
    if endpoint.strip_plain is not None and config.provider.encrypts_reasoning:
        body = endpoint.strip_plain(body)
    return without_fields(body, config.drop_fields) if config.drop_fields else body


def _attempt(exchange: Exchange, reservation: Reservation) -> ClientResponse:
    """Get the whole response of a backend, or its stream up to the first content."""
    attempt = Attempt(exchange.engine, exchange.request, reservation, exchange.request_id)
    try:
        parsed, choice = exchange.parsed, reservation.choice
        model = reservation.view.name_at_backend(choice)
        if (upload := exchange.upload) is not None:
            _rename(upload, exchange.form_model, model)
        path, body = exchange.endpoint.path, _body_for(exchange, choice, model)
        if choice.translation is not None:
            path, body = attempt.translate(choice.translation, body)
            body = without_fields(body, choice.backend.config.drop_fields)
        streams = parsed.stream and exchange.endpoint.streams
        ask_usage = (
            streams
            and choice.backend.config.stream_usage
            and not attempt.dialect.asks_for_usage(body)
        )
        attempt.send(path, upload or body, ask_usage=ask_usage)
        if not 200 <= (status := attempt.status) < 300:
            raise attempt.failure()
        if (units := exchange.endpoint.units) is not None and units.in_request is not None:
            exchange.units = units.in_request(exchange.body)
        stream, custom = attempt.is_stream(requested=streams), exchange.endpoint.custom
        if stream or (exchange.endpoint.binary and attempt.is_binary()):
            keepalive_s = reservation.view.snapshot.config.server.stream_keepalive_seconds
            show_life, ping_s = not keepalive_s, attempt.dialect.PING_S
            attempt.await_content(show_life=show_life, binary=not (stream or custom), ping_s=ping_s)
            reservation.mark_served()
            _add_estimated_cost(exchange)
            return stream_response(exchange, attempt)
        content = attempt.read_all()
        exchange.usage = attempt.failures.usage_in(attempt.response, content, any_form=custom)
        content = attempt.translated(content)
        if units is not None and units.in_response is not None:
            exchange.units = units.in_response(content)
        if (ids := exchange.endpoint.ids) is not None and choice.translation is None:
            remember_whole(exchange, ids, content)
    except BaseException as error:
        retry_after_s = error.retry_after_s if isinstance(error, RequestFailed) else None
        attempt.end(fault_of(error), retry_after_s=retry_after_s)
        raise
    attempt.end(None)
    _add_estimated_cost(exchange)
    exchange.response_started(attempt)
    headers = attempt.headers
    if exchange.view.prices is not None:
        headers = headers + cost_header(exchange.charge())
    exchange.release()  # now: the client's next request may come before this one is recorded
    return whole_response(exchange, status, headers, content)


def _add_estimated_cost(exchange: Exchange) -> None:
    """Add the header with the estimated cost of a cloud backend's response, which needs the
    body."""
    prices, choice = exchange.view.prices, exchange.choice
    if prices is not None and choice is not None and choice.backend.cloud:
        header = estimate_header(prices, choice.backend, choice.model, exchange.token_estimate())
        exchange.own_headers = [*exchange.own_headers, *header]
