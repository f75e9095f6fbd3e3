"""The requests that ended last, as JSON: the original's keys, and ours besides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nexus.errors import RequestFailed
from nexus.fleet.request_log import RequestRecord

MOST = 1000
_USUAL = 100
_NUMBER = re.compile("[1-9][0-9]{0,3}")
_PARAMETERS = ("limit", "status", "model", "backend")
_STATUS = {"success": True, "error": False}


def entry(record: RequestRecord) -> dict[str, Any]:
    failed = record.status >= 400
    return {
        "timestamp": int(record.ended),
        "model": record.model,
        "backend_id": record.backend,
        "duration_ms": record.duration_ms,
        "status": "Error" if failed else "Success",
        "error_message": (record.fault or record.error_type or str(record.status))
        if failed
        else None,
        "id": record.id,
        "ended": round(record.ended, 3),
        "endpoint": record.endpoint,
        "asked_model": record.requested_model,
        "http_status": record.status,
        "error_type": record.error_type,
        "reason": record.reason,
        "stream": record.stream,
        "ttft_ms": record.ttft_ms,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "attempts": [
            {"backend": one.backend, "model": one.model, "outcome": one.outcome, "ms": one.ms}
            for one in record.attempts
        ],
    }


class Filter:
    """Which requests are wanted: `status` success or error, `model` and `backend` by name, at most `limit`.

    With `by_part` any part of a name will do, in upper or lower case: what people type.
    """

    def __init__(self, arguments: Mapping[str, str], *, by_part: bool = False) -> None:
        """Raises `RequestFailed` for what cannot be meant."""
        if not by_part and (unknown := set(arguments) - set(_PARAMETERS)):
            known = ", ".join(_PARAMETERS)
            raise RequestFailed(
                "invalid_request",
                f"There is no such parameter; there are {known}.",
                param=min(unknown),
            )
        if not by_part and arguments.get("status") == "":
            raise RequestFailed("invalid_request", "status takes success or error.", param="status")
        self._by_part = by_part
        self.status = arguments.get("status") or ""
        self.model = arguments.get("model") or ""
        self.backend = arguments.get("backend") or ""
        limit = arguments.get("limit", str(_USUAL))
        if self.status and self.status not in _STATUS:
            raise RequestFailed("invalid_request", "status takes success or error.", param="status")
        if not _NUMBER.fullmatch(limit) or int(limit) > MOST:
            raise RequestFailed(
                "invalid_request", f"limit takes a whole number from 1 to {MOST}.", param="limit"
            )
        self.limit = int(limit)
        self.key = (self.status, self.model, self.backend, self.limit)
        """Equal for equal filters."""

    def takes(self, record: RequestRecord) -> bool:
        return (
            (not self.status or (record.status < 400) == _STATUS[self.status])
            and (
                not self.model
                or self._means(self.model, record.model)
                or self._means(self.model, record.requested_model)
            )
            and (not self.backend or self._means(self.backend, record.backend or ""))
        )

    def _means(self, wanted: str, name: str) -> bool:
        return wanted.strip().casefold() in name.casefold() if self._by_part else wanted == name
