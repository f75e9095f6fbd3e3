"""Who may see and change the gateway: the operators' token, hosts and origins."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Callable, Collection, Mapping
from functools import cache
from secrets import token_urlsafe
from urllib.parse import urlsplit

from flask import Response, request

from nexus.config.admin_records import Admin
from nexus.config.secrets import SecretError, secret
from nexus.dialects.openai.errors import error_body

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_OWN_SITE = ("same-origin", "none")

Guard = Callable[[], Response | None]
"""A blueprint's `before_request`: None lets the request through."""


def error_response(status: int, code: str, message: str, *, param: str | None = None) -> Response:
    """An error in OpenAI's form that no cache may keep."""
    content = error_body(message, status=status, code=code, param=param)
    response = Response(content, status, mimetype="application/json")
    response.headers["cache-control"] = "no-store"
    return response


def admin_token(admin: Admin | None, environ: Mapping[str, str]) -> str | None:
    """The token that the operators have set; a random one if theirs cannot be used."""
    try:
        return secret((admin or Admin()).token_env, environ)
    except SecretError:
        return token_urlsafe()


def require_token(token: str | None, *, bearer_only: bool = False) -> Response | None:
    """The response to a request that lacks the token; None if it has the token or if there is none.

    The token comes as `Authorization: Bearer TOKEN`. For reading it may also be the password of
    Basic authentication, which browsers ask for. A browser sends that password by itself, so
    changes do not take it.
    """
    if token is None or has_token(token, bearer_only=bearer_only):
        return None
    form = "a bearer token" if bearer_only else "a bearer token, or the password of any user"
    response = error_response(401, "unauthorized", f"This takes the operators' token, as {form}.")
    scheme = 'Bearer realm="Nexus"' if bearer_only else 'Basic realm="Nexus", charset="UTF-8"'
    response.headers["www-authenticate"] = scheme
    return response


def has_token(token: str, *, bearer_only: bool = False) -> bool:
    """Whether the request carries this token."""
    given = request.authorization
    if given is None:
        return False
    shown = given.token if given.type == "bearer" else None if bearer_only else given.password
    return shown is not None and hmac.compare_digest(shown.encode(), token.encode())


def require_own_host(own_names: Callable[[], Collection[str]]) -> Guard:
    """Refuse a request whose `Host` is a name that is not this machine's.

    A web page can have its own name resolve to this machine (DNS rebinding) and would then be of
    the same origin.
    """

    def check() -> Response | None:
        host = request.headers.get("host", "")
        if not host or is_own_host(host, own_names()):
            return None
        message = (
            f"{host[:200]!r} is not a name of this gateway; "
            "add it to [admin] hosts, or use the address."
        )
        return error_response(421, "unknown_host", message)

    return check


def is_own_host(host: str, own_names: Collection[str]) -> bool:
    """Whether a `Host` header is an IP address, `localhost`, this machine's name or an own name."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ("localhost", *map(str.lower, own_names)) or name in _machine_names()
    return True


@cache
def _machine_names() -> frozenset[str]:
    return frozenset(name.lower() for name in (socket.gethostname(), socket.getfqdn()))


def require_same_site() -> Response | None:
    """Refuse a change that a web page of another origin sends, and one that a form could send."""
    if request.method in SAFE_METHODS:
        return None
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign or (site is not None and site not in _OWN_SITE):
        return error_response(
            403, "cross_origin", "A web page of another origin cannot change the gateway."
        )
    if request.mimetype != "application/json" and (request.method != "DELETE" or request.mimetype):
        return error_response(
            415, "unsupported_media_type", "Changes take content-type: application/json."
        )
    return None
