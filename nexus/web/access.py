"""Who may see and change the gateway: the operators' token."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from flask import Response, request

from nexus.errors import error_body


def refusal(token: str | None) -> Response | None:
    """What a request without the token is answered; None where it carries it, or where there is none.

    It comes as `Authorization: Bearer TOKEN`, or as the password of Basic authentication, which browsers ask for.
    """
    if token is None:
        return None
    given = request.authorization
    shown = (given.token if given.type == "bearer" else given.password) if given is not None else None
    if shown is not None and hmac.compare_digest(shown.encode(), token.encode()):
        return None
    message = "This takes the operators' token, as a bearer token or as the password of any user."
    response = Response(error_body(message, status=401, code="unauthorized"), 401, mimetype="application/json")
    response.headers["www-authenticate"] = 'Basic realm="Nexus", charset="UTF-8"'
    response.headers["cache-control"] = "no-store"
    return response


def guard(token: Callable[[], str | None]) -> Callable[[], Response | None]:
    """As a blueprint's `before_request`; the token is asked for at each request, since a reload may change it."""
    return lambda: refusal(token())
