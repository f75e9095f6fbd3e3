"""Who may see and change the gateway: the operators' token."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Literal

from flask import Response, request

from nexus.config.secrets import secret
from nexus.errors import error_body
from nexus.fleet.records import Snapshot


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


Protected = Literal["dashboard", "metrics"]


def token_for(what: Protected, snapshot: Snapshot | None, environ: Mapping[str, str]) -> str | None:
    """What must be shown to see this; None where it is open: there is no token, or the operators left it open."""
    if snapshot is None or what not in snapshot.config.admin.protect:
        return None
    return secret(snapshot.config.admin.token_env, environ)


def guard(token: Callable[[], str | None]) -> Callable[[], Response | None]:
    """As a blueprint's `before_request`; the token is asked for at each request, since a reload may change it."""
    return lambda: refusal(token())
