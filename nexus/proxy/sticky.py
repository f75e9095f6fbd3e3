"""Which backend stores what a request names: a previous response, a conversation."""

from __future__ import annotations

from collections.abc import Iterable

from nexus.errors import RequestFailed
from nexus.proxy.exchange import Exchange


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


def remember(exchange: Exchange, ids: Iterable[str]) -> None:
    """The backend of the last attempt stores a response under these ids."""
    if (choice := exchange.choice) is not None:
        engine = exchange.engine
        for stored_id in ids:
            engine.sticky.add(stored_id, choice.backend.name, int(engine.clock()))
