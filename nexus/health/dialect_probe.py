"""Finds out which dialects a backend speaks, by requests that no server can serve.

`{}` names no model, so a server that knows the path refuses it before any work or cost. OpenAI's
dialect is not asked for: it stands for many paths, of which a server may have only some.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from nexus.config import BackendConfig

log = logging.getLogger("nexus.health")

_PATHS = {"anthropic": "/v1/messages", "responses": "/v1/responses"}
_NOTHING = "{}"
_SPOKEN, _NOT_SPOKEN = frozenset({400, 422}), frozenset({404, 405})

Send = Callable[[str, str], int | str]
"""Sends a body to a path; returns the status of the response, or why there is none."""


class DialectProbe:
    """Asks one backend once, and again after its version has changed.

    A kind that tells no version is asked again after a probe has failed.
    """

    def __init__(self, config: BackendConfig) -> None:
        self._config = config
        self._asked_at: str | None = None
        self._seen_version: str | None = None
        self._was_away = False
        self._unclear: set[str] = set()

    def failed(self) -> None:
        """A probe failed, so another version may come back."""
        self._was_away = True

    def is_due(self, version: str) -> bool:
        """Whether to ask now, after a probe that showed this version; empty if it shows none.

        A new version counts when two probes in turn show it: behind one address there may be two
        servers with different versions.
        """
        if self._config.dialects:
            return False
        before, self._seen_version = self._seen_version, version
        if self._asked_at is None:
            return True
        if version:
            return before == version != self._asked_at
        return self._was_away

    def ask(self, version: str, send: Send, known: Collection[str]) -> frozenset[str]:
        """The dialects that the backend speaks; `known` are those it is taken to speak so far."""
        self._asked_at, self._was_away = version, False
        spoken = set(known)
        for name, path in _PATHS.items():
            answer = send(path, _NOTHING)
            if answer in _SPOKEN:
                spoken.add(name)
            elif answer in _NOT_SPOKEN:
                spoken.discard(name)
            elif name not in self._unclear:
                self._unclear.add(name)
                log.info(
                    "a backend does not show whether it speaks an API",
                    extra={
                        "backend": self._config.name,
                        "path": path,
                        "answer": answer,
                        "taken_as": "spoken" if name in spoken else "not spoken",
                    },
                )
        return frozenset(spoken)
