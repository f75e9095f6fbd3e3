"""Errors in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


def error_body(
    message: str,
    *,
    status: int,
    code: str | None,
    param: str | None = None,
    context: Mapping[str, Any] | None = None,
) -> bytes:
    """An error in OpenAI's form; a 503 carries the original's `context` beside it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    body: dict[str, Any] = {
        "error": {"message": message, "type": kind, "param": param, "code": code}
    }
    if context is not None:
        body["context"] = context
    return msgspec.json.encode(body)
