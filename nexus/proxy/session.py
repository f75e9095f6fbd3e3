"""The session of a request: by a header, by its body, or by the start of its prompt."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import msgspec

from nexus.config.routing_records import Affinity
from nexus.dialects.base import ParsedRequest
from nexus.http.headers import RequestHeaders
from nexus.routing.affinity import LONGEST_PREFIX, Session, prefix_keys

OVERRIDE = "x-nexus-affinity"
"""The request header that names the session, or is `off`."""
_LONGEST_ID = 255


class SessionReader(msgspec.Struct):
    """Determines a request's session when routing first needs it.

    Attributes:
        model: The model to which the client's name resolves.
        scope: Sessions of different scopes never meet.
    """

    headers: RequestHeaders
    parsed: ParsedRequest
    settings: Affinity
    model: str
    scope: str = ""
    _found: Session | None = None
    _read: bool = False

    def __call__(self) -> Session | None:
        if not self._read:
            self._read, self._found = True, self._session()
        return self._found

    def _session(self) -> Session | None:
        settings, first, prompt = self.settings, self.headers.first, self.parsed.prompt
        override = first.get(OVERRIDE)
        if override == "off":
            return None
        if override:
            return Session.of("header", override.encode(), self.scope)
        if prompt is None:
            return None
        if session_id := _first_id(first.get, settings.headers):
            return Session.of("header", session_id.encode(), self.scope)
        if session_id := _first_id(prompt.text_of, settings.body):
            return Session.of("body", session_id.encode(errors="replace"), self.scope)
        if not settings.prefix_bytes:
            return None
        start, end = prompt.start(LONGEST_PREFIX, settings.prefix_bytes)
        prefix = start[: min(end, settings.prefix_bytes)]
        return Session.of(
            "prefix",
            b"%d %d" % (crc32(prefix), len(prefix)),
            self.scope,
            prefixes=prefix_keys(start, end, f"{self.scope} {self.model}"),
        )


def _first_id(value_of: Callable[[str], str | None], names: list[str]) -> str | None:
    """The first value that can be the id of a session."""
    for name in names:
        value = value_of(name)
        if value and len(value) <= _LONGEST_ID:
            return value
    return None
