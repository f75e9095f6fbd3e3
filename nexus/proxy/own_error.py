"""Errors for requests that reach no endpoint. They have an id, too, as all responses do."""

from __future__ import annotations

import re
import uuid

from nexus.dialects.base import Dialect
from nexus.http.cross_origin import Headers

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
"""A client's id of a request that is used as it is."""


def own_error(
    dialect: Dialect,
    message: str,
    *,
    status: int,
    code: str,
    param: str | None = None,
    given_id: str | None = None,
) -> tuple[Headers, bytes]:
    """The headers and the body of an error. `given_id` is the client's `x-request-id`."""
    usable = REQUEST_ID.fullmatch(given_id or "")
    request_id = usable.group() if usable else str(uuid.uuid4())
    content = dialect.error_body(
        message, status=status, code=code, param=param, request_id=request_id
    )
    headers = [("content-type", "application/json"), ("content-length", str(len(content)))]
    headers.append(("x-request-id", request_id))
    if dialect.REQUEST_ID_HEADER is not None:
        headers.append((dialect.REQUEST_ID_HEADER, request_id))
    return headers, content
