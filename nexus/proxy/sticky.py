"""Which backends alone can serve a request: one stores what it names, or can read what it holds.

A previous response or a conversation is at one backend. What a vendor has encrypted in a response
can only be read by backends of the same account.
"""

from __future__ import annotations

from collections.abc import Iterable

from nexus.dialects.base import IdReader
from nexus.dialects.responses.usage import SEALED
from nexus.errors import RequestFailed
from nexus.proxy.exchange import Exchange
from nexus.proxy.session import named_session


def homes_of(exchange: Exchange) -> frozenset[str] | None:
    """The backends that alone can serve the request, as far as that is known; None for any.

    Raises `RequestFailed` if the backend is gone that stores what the request names.
    """
    home = home_of(exchange)
    return _account_of(exchange) if home is None else frozenset((home,))


def _account_of(exchange: Exchange) -> frozenset[str] | None:
    """The backends that can read what the request holds encrypted; None if that is unknown.

    Who encrypted the first such item is known from the response that had it; else the session
    stays with the account that served it before.
    """
    engine, view, prompt = exchange.engine, exchange.view, exchange.parsed.prompt
    ids = exchange.endpoint.ids
    if (accounts := view.accounts) is None or ids is None or prompt is None:
        return None
    item, session = ids.sealed(prompt), named_session(exchange)
    exchange.sealed = item, session
    if item is None:
        return None
    now_s = int(engine.clock())
    for name in (item, session):
        home = engine.sticky.find(name, accounts, now_s) if name is not None else None
        if home:
            readers = accounts[home]
            candidates = view.table.candidates_for(exchange.resolved_model)
            if readers.isdisjoint(one.backend.name for one in candidates):
                break  # none of them has the model: another backend may say what it makes of it
            engine.recorder.sticky("hit")
            return readers
    engine.recorder.sticky("unknown")
    return None


def home_of(exchange: Exchange) -> str | None:
    """The backend that stores what the request names; None if it names nothing, or is unknown.

    Raises `RequestFailed` if that backend is gone.
    """
    endpoint, prompt = exchange.endpoint, exchange.parsed.prompt
    if endpoint.body == "none":
        names = [exchange.request.target.stored_id]
    elif endpoint.ids is not None and prompt is not None:
        names = endpoint.ids.in_request(prompt)
    else:
        names = []
    if not names:
        return None
    engine, backends = exchange.engine, exchange.view.snapshot.backends
    now_s = int(engine.clock())
    for name in names:
        home = engine.sticky.find(name, (backend.name for backend in backends), now_s)
        if home:
            engine.recorder.sticky("hit")
            return home
        if home is not None:
            engine.recorder.sticky("gone")
            message = "The backend that stores what the request names is not in the fleet any more."
            raise RequestFailed("response_unavailable", message)
    engine.recorder.sticky("unknown")
    return None


def remember_whole(exchange: Exchange, ids: IdReader, content: bytes) -> None:
    """The backend of the last attempt gave this whole response."""
    remember(exchange, ids.in_response(content))
    if exchange.budgets is not None and (state := ids.background(content)) and not state.ended:
        exchange.background = state.stored_id


def report_end(exchange: Exchange, content: bytes) -> None:
    """A client got this stored response: budgets that hold for it are charged if it has ended."""
    ids = exchange.endpoint.ids
    if exchange.view.budgets is None or ids is None:
        return
    if (state := ids.background(content)) is not None and state.ended:
        exchange.engine.background.ended(state.stored_id, state.usage)


def remember(exchange: Exchange, ids: Iterable[str]) -> None:
    """The backend of the last attempt stores a response under these ids, or can read it."""
    if (choice := exchange.choice) is None:
        return
    names = list(ids)
    item, session = exchange.sealed
    if exchange.view.accounts is None:
        names = [name for name in names if not name.startswith(SEALED)]
    elif item is not None or any(name.startswith(SEALED) for name in names):
        names += [name for name in (item, session) if name is not None]
    engine = exchange.engine
    for name in names:
        engine.sticky.add(name, choice.backend.name, int(engine.clock()))
