"""Checks every request before routing: its Host, its path, and the page that sends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gunicorn.http.wsgi import Response as GunicornResponse

from nexus.config.admin_records import Cors
from nexus.dialects.base import Dialect
from nexus.http import cross_origin
from nexus.proxy.endpoints import ENDPOINTS
from nexus.proxy.own_error import own_error
from nexus.server.refusals import dialect_of

DEPLOYMENT = "nexus.deployment"
"""The key of the WSGI environment for the model that an Azure path names."""

_Start = Callable[..., Any]
_App = Callable[[dict[str, Any], _Start], Iterable[bytes]]


class Ingress:
    """A WSGI application around another. `follow` reads a new fleet, `rejected` counts refusals by
    reason, `preflight` counts preflights."""

    def __init__(
        self,
        app: _App,
        *,
        follow: Callable[[], object],
        cors: Callable[[], Cors],
        rejected: Callable[[str], None],
        preflight: Callable[[], None],
    ) -> None:
        self._app = app
        self._follow = follow
        self._cors = cors
        self._rejected = rejected
        self._preflight = preflight

    def __call__(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        if "HTTP_UPGRADE" in environ:
            start = _naming_protocol(start)
        host = environ.get("HTTP_HOST")
        if host is None and environ.get("SERVER_PROTOCOL") == "HTTP/1.1":
            return self._refuse(
                environ,
                start,
                "400 Bad Request",
                "bad_request",
                "A request must name a Host (RFC 9112, 3.2).",
            )
        self._follow()  # its configuration may have other endpoints
        environ["PATH_INFO"], deployment = ENDPOINTS.canonical(environ["PATH_INFO"])
        if deployment is not None:
            environ[DEPLOYMENT] = deployment.encode("latin-1").decode("utf-8", "replace")
        if "HTTP_ORIGIN" not in environ and "HTTP_SEC_FETCH_SITE" not in environ:
            return self._app(environ, start)
        return self._from_browser(environ, start)

    def _from_browser(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        cors, headers = self._cors(), _browser_headers(environ)
        if (
            environ["REQUEST_METHOD"] == "OPTIONS"
            and {"origin", "access-control-request-method"} <= headers.keys()
        ):
            self._preflight()
            allowed = cross_origin.preflight(headers, cors)
            if allowed is None:
                return _respond(
                    environ, start, "403 Forbidden", "origin_refused", cross_origin.REFUSAL
                )
            start("204 No Content", allowed)
            return []
        if ENDPOINTS.at(environ["PATH_INFO"]) is not None:
            return self._app(environ, start)  # the endpoint counts it as a request
        if not cross_origin.admits(headers, cors.origins) and not _navigates(environ):
            return self._refuse(
                environ, start, "403 Forbidden", "origin_refused", cross_origin.REFUSAL
            )
        given = cross_origin.response_headers(headers.get("origin"), cors.origins)
        return self._app(environ, lambda status, ours, *more: start(status, [*ours, *given], *more))

    def _refuse(
        self, environ: dict[str, Any], start: _Start, status: str, reason: str, message: str
    ) -> list[bytes]:
        self._rejected(reason)
        return _respond(environ, start, status, reason, message)


def _browser_headers(environ: dict[str, Any]) -> dict[str, str]:
    names = (
        "host",
        "origin",
        "sec-fetch-site",
        "access-control-request-method",
        "access-control-request-headers",
    )
    given = ((name, environ.get(f"HTTP_{name.upper().replace('-', '_')}")) for name in names)
    return {name: value for name, value in given if value is not None}


def _navigates(environ: dict[str, Any]) -> bool:
    """Whether the user follows a link to our page, which the page with the link cannot read."""
    return (
        environ["REQUEST_METHOD"] in ("GET", "HEAD")
        and "HTTP_ORIGIN" not in environ
        and environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
        and environ.get("HTTP_SEC_FETCH_DEST") == "document"
    )


def _naming_protocol(start: _Start) -> _Start:
    """`start`, with the protocol to use in a response of 426 (RFC 9110, section 15.5.22).

    An application must not send headers of the connection (PEP 3333), and gunicorn drops them, so
    they are set in gunicorn's response, which `start` is a method of.
    """
    response = getattr(start, "__self__", None)

    def started(status: str, *more: Any) -> Any:
        write = start(status, *more)
        if status.startswith("426 ") and isinstance(response, GunicornResponse):
            response.headers.append(("Upgrade", "HTTP/1.1"))
            response.upgrade = True
        return write

    return started


def environ_dialect(environ: dict[str, Any]) -> Dialect:
    """The dialect in which the client of a WSGI call reads errors."""
    return dialect_of(environ["PATH_INFO"], anthropic_client="HTTP_ANTHROPIC_VERSION" in environ)


def _respond(
    environ: dict[str, Any], start: _Start, status: str, code: str, message: str
) -> list[bytes]:
    given_id = environ.get("HTTP_X_REQUEST_ID")
    headers, content = own_error(
        environ_dialect(environ), message, status=int(status[:3]), code=code, given_id=given_id
    )
    start(status, headers)
    return [content]
