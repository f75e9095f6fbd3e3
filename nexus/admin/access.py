"""Who may see and change the gateway: the operators' token, and from where a browser may send it."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Callable, Collection, Mapping
from functools import cache
from secrets import token_urlsafe
from typing import Literal
from urllib.parse import urlsplit

from flask import Response, request

from nexus.config.records import Admin
from nexus.config.secrets import SecretError, secret
from nexus.dialects.openai.errors import error_body
from nexus.fleet.records import Snapshot

_READING = ("GET", "HEAD", "OPTIONS")
_OWN_SITE = ("same-origin", "none")

Guard = Callable[[], Response | None]
"""A blueprint's `before_request`: None lets the request through."""


def refuse(status: int, code: str, message: str) -> Response:
    """An error in OpenAI's form that no cache may keep."""
    content = error_body(message, status=status, code=code)
    response = Response(content, status, mimetype="application/json")
    response.headers["cache-control"] = "no-store"
    return response


def refusal(token: str | None, *, changes: bool = False) -> Response | None:
    """The response to a request that lacks the token; None if it has the token or if there is none.

    The token comes as `Authorization: Bearer TOKEN`. For reading it may also be the password of Basic
    authentication, which browsers ask for. A browser sends that password by itself, so changes do not take it.
    """
    if token is None or shows(token, bearer_only=changes):
        return None
    how = "a bearer token" if changes else "a bearer token, or the password of any user"
    response = refuse(401, "unauthorized", f"This takes the operators' token, as {how}.")
    scheme = 'Bearer realm="Nexus"' if changes else 'Basic realm="Nexus", charset="UTF-8"'
    response.headers["www-authenticate"] = scheme
    return response


def shows(token: str, *, bearer_only: bool = False) -> bool:
    """Whether the request carries this token."""
    given = request.authorization
    if given is None:
        return False
    shown = given.token if given.type == "bearer" else None if bearer_only else given.password
    return shown is not None and hmac.compare_digest(shown.encode(), token.encode())


Protected = Literal["dashboard", "metrics"]


def token_for(what: Protected, snapshot: Snapshot | None, environ: Mapping[str, str]) -> str | None:
    """The token that this asks for; None if it is open: there is no token, or `protect` does not list it.

    While no snapshot has been read, the configuration is unknown and everything counts as listed.
    """
    if snapshot is None:
        return own_token(Admin(), environ)
    admin = snapshot.config.admin
    return own_token(admin, environ) if what in admin.protect else None


def names_token(snapshot: Snapshot | None, environ: Mapping[str, str]) -> str | None:
    """The token that names of backends ask for, in answers that are open otherwise: where anything is protected."""
    if snapshot is not None and not snapshot.config.admin.protect:
        return None
    return own_token(snapshot.config.admin if snapshot else Admin(), environ)


def own_token(admin: Admin, environ: Mapping[str, str]) -> str | None:
    """The token that the operators have set; one that nobody knows if theirs cannot be used."""
    try:
        return secret(admin.token_env, environ)
    except SecretError:
        return token_urlsafe()


def own_hosts(named: Callable[[], Collection[str]]) -> Guard:
    """Refuses a request whose `Host` is a name that is not this machine's.

    A web page can have its own name resolve to this machine (DNS rebinding) and would then be of the same origin.
    """

    def check() -> Response | None:
        host = request.headers.get("host", "")
        if not host or is_own_host(host, named()):
            return None
        name = host[:200]
        message = (
            f"{name!r} is not a name of this gateway; add it to [admin] hosts, or use the address."
        )
        return refuse(421, "unknown_host", message)

    return check


def is_own_host(host: str, named: Collection[str]) -> bool:
    """Whether a `Host` header names this machine: an IP address, `localhost`, its own name, or one of `named`."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return (
            name == "localhost"
            or name in (one.lower() for one in named)
            or name in _machine_names()
        )
    return True


@cache
def _machine_names() -> frozenset[str]:
    return frozenset(name.lower() for name in (socket.gethostname(), socket.getfqdn()))


def same_site() -> Response | None:
    """Refuses a change that a web page of another origin sends, and one that a form could send."""
    if request.method in _READING:
        return None
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign or (site is not None and site not in _OWN_SITE):
        return refuse(
            403, "cross_origin", "A web page of another origin cannot change the gateway."
        )
    if request.mimetype != "application/json" and (request.method == "POST" or request.mimetype):
        return refuse(415, "unsupported_media_type", "Changes take content-type: application/json.")
    return None
