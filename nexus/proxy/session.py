"""The session of a request: by a header, by its body, and by the start of its prompt."""

from __future__ import annotations

import msgspec
from xxhash import xxh3_64_intdigest

from nexus.config.routing_records import Affinity
from nexus.dialects.base import ParsedRequest, Prompt
from nexus.dialects.conversation import first_message_end, prompt_start
from nexus.http.headers import RequestHeaders
from nexus.proxy.exchange import Exchange
from nexus.routing.affinity import LONGEST_PREFIX, SHORTEST_PREFIX, Session, starts_of

OVERRIDE = "x-nexus-affinity"
"""The request header that names the session, or is `off`."""
_LONGEST_ID = 255


class SessionReader(msgspec.Struct):
    """Determines a request's session when routing first needs it.

    Attributes:
        model: The model to which the client's name resolves.
        scope: Sessions of different scopes never meet.
        seed: Of the table of prefixes.
    """

    headers: RequestHeaders
    parsed: ParsedRequest
    settings: Affinity
    model: str
    scope: str = ""
    seed: int = 0
    _found: Session | None = None
    _read: bool = False

    def __call__(self) -> Session | None:
        if not self._read:
            self._read, self._found = True, self._session()
        return self._found

    def _session(self) -> Session | None:
        settings, first, prompt = self.settings, self.headers.first, self.parsed.prompt
        override = first.get(OVERRIDE)
        if override is not None and override:
            return None if override == "off" else Session("header", override.encode(), self.scope)
        if prompt is None:
            return None
        named = self._named(prompt)
        if not settings.prefix_bytes:
            return named
        pieces = prompt.pieces()
        if len(pieces) == 1 and len(pieces[0]) < SHORTEST_PREFIX:
            return named
        start, messages_at = prompt_start(pieces, LONGEST_PREFIX)
        if len(start) < SHORTEST_PREFIX:
            return named
        keys, ends = starts_of(start, self.scope, self.model, self.seed)
        if named is not None:
            named.keys, named.ends = keys, ends
            return named
        return _PromptSession(
            "prefix", b"", self.scope, keys, ends, b"", start, messages_at, settings.prefix_bytes
        )

    def _named(self, prompt: Prompt) -> Session | None:
        """The session whose id the client gives; None if it gives none."""
        settings, first, fields = self.settings, self.headers.first, prompt.fields
        if not first.keys().isdisjoint(settings.headers):
            for name in settings.headers:
                if 0 < len(value := first.get(name, "")) <= _LONGEST_ID:
                    return Session("header", value.encode(), self.scope)
        for path in settings.body:
            if path.partition(".")[0] in fields:
                text = prompt.text_of(path)
                if text and len(text) <= _LONGEST_ID:
                    return Session("body", text.encode(errors="replace"), self.scope)
        return None


class _PromptSession(Session):
    """The session of a prompt without an id. It begins with `start`."""

    start: memoryview = memoryview(b"")
    messages_at: int = 0
    most: int = 0

    def identify(self) -> bytes:
        end = first_message_end(self.start, self.messages_at, self.most)
        prefix = self.start[: min(end, self.most)]
        return b"%d %d" % (xxh3_64_intdigest(prefix), len(prefix))


def session_reader(exchange: Exchange) -> SessionReader:
    settings, caller = exchange.view.table.affinity, exchange.caller
    scope = caller.key if caller is not None and settings.scope == "key" else ""
    seed = exchange.engine.admission.prefixes.seed
    return SessionReader(
        exchange.request.headers, exchange.parsed, settings, exchange.resolved_model, scope, seed
    )


def named_session(exchange: Exchange) -> str | None:
    """A name for the session whose id the client gives; None if it gives none."""
    session = session_reader(exchange)()
    if session is None or session.source == "prefix":
        return None
    return f"session {session.digest.hex()}"
