"""`/v1/history`: which of the requests that ended last are shown."""

from __future__ import annotations

import re
from collections.abc import Mapping

from nexus.errors import RequestFailed
from nexus.fleet.history import RequestRecord

MAX_REQUESTS = 1000
_DEFAULT_LIMIT = 100
_LIMIT = re.compile("[1-9][0-9]{0,3}")
_PARAMETERS = ("limit", "status", "model", "backend")


class Filter:
    """Which requests are shown: by `status`, `model` and `backend`, at most `limit`.

    With `partial_names`, any part of a name matches in upper or lower case, as people type it.
    """

    def __init__(self, arguments: Mapping[str, str], *, partial_names: bool = False) -> None:
        """Read the query's parameters. Raises `RequestFailed`.

        With `partial_names` the page's own form sends them: unknown and empty ones are ignored.
        """
        if not partial_names and (unknown := set(arguments) - set(_PARAMETERS)):
            message = f"There is no such parameter; there are {', '.join(_PARAMETERS)}."
            raise RequestFailed("invalid_request", message, param=min(unknown))
        self._partial_names = partial_names
        self.status = arguments.get("status", "")
        self.model = arguments.get("model", "")
        self.backend = arguments.get("backend", "")
        empty = self.status == "" and (partial_names or "status" not in arguments)
        if not empty and self.status not in ("success", "error"):
            raise RequestFailed("invalid_request", "status takes success or error.", param="status")
        limit = arguments.get("limit", str(_DEFAULT_LIMIT))
        if not _LIMIT.fullmatch(limit) or int(limit) > MAX_REQUESTS:
            message = f"limit takes a whole number from 1 to {MAX_REQUESTS}."
            raise RequestFailed("invalid_request", message, param="limit")
        self.limit = int(limit)
        self.key = (self.status, self.model, self.backend, self.limit)
        """Equal for equal filters."""

    def matches(self, record: RequestRecord) -> bool:
        status = "success" if record.status < 400 else "error"
        return (
            self.status in ("", status)
            and any(
                self._matches(self.model, name) for name in (record.model, record.requested_model)
            )
            and self._matches(self.backend, record.backend or "")
        )

    def _matches(self, wanted: str, name: str) -> bool:
        if not wanted:
            return True
        if self._partial_names:
            return wanted.strip().casefold() in name.casefold()
        return wanted == name
