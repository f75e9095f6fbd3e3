"""From a WSGI environment to the engine's `Request`."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

from nexus.errors import RequestFailed
from nexus.http.client_watch import ClientGone, DisconnectWatch, watchable
from nexus.http.headers import RequestHeaders
from nexus.proxy.endpoint_table import Endpoint, Target
from nexus.proxy.request import Request
from nexus.server.ingress import DEPLOYMENT

HEAD_SECONDS = "NEXUS HEAD SECONDS"
"""The header by which the worker says how long a head took to arrive. No client's header can have
a name with blanks."""
_UNDERSCORE = ":"
"""No client's header can have it in its name."""
_PIECE = 64 * 1024


def distinct(field: tuple[str, str]) -> tuple[str, str]:
    """A header for gunicorn, which would give `X_A` and `X-A` one name in the WSGI environment."""
    name, value = field
    return name.replace("_", _UNDERSCORE), value


def request_from(
    environ: dict[str, Any],
    endpoint: Endpoint,
    *,
    received: float,
    client_timeout_s: float,
    stored_id: str = "",
) -> Request:
    """The request of a WSGI call. A client's socket that the server shows is watched."""
    given = environ.get("gunicorn.socket")
    sock = given if isinstance(given, socket.socket) else None
    if sock is not None:
        sock.settimeout(client_timeout_s)
    head_s = float(environ.pop(f"HTTP_{HEAD_SECONDS}", 0.0))
    return Request(
        method=environ["REQUEST_METHOD"],
        target=Target(
            endpoint, environ.get("QUERY_STRING", ""), environ.get(DEPLOYMENT), stored_id
        ),
        headers=RequestHeaders.of(list(_headers(environ))),
        body=lambda limit, hold: read_body(environ, limit, hold),
        consume=lambda limit, take: consume_body(environ, limit, take),
        received=received,
        watch=DisconnectWatch(watchable(sock), connection=sock),
        head_s=head_s,
    )


def release(environ: dict[str, Any]) -> None:
    """Restore the server's own timeout of the client's socket, for an idle connection."""
    sock = environ.get("gunicorn.socket")
    if isinstance(sock, socket.socket) and sock.fileno() >= 0:
        sock.settimeout(None)


def _headers(environ: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            yield key[5:].replace("_", "-").replace(_UNDERSCORE, "_").lower(), value
    if environ.get("CONTENT_TYPE"):
        yield "content-type", environ["CONTENT_TYPE"]


def read_body(environ: dict[str, Any], limit: int, hold: Callable[[int], None]) -> bytes:
    """The whole body, at most `limit` bytes; `hold` counts those of each piece.

    Raises `RequestFailed` for one too large, too slow or cut short.
    """
    pieces: list[bytes] = []

    def take(piece: bytes) -> None:
        hold(len(piece))
        pieces.append(piece)

    consume_body(environ, limit, take)
    return b"".join(pieces)


def consume_body(environ: dict[str, Any], limit: int, take: Callable[[bytes], object]) -> None:
    """Read the body, at most `limit` bytes; each piece goes to `take`.

    Raises `RequestFailed` for one too large, too slow or cut short, and what `take` raises.
    """
    stream = environ["wsgi.input"]
    given = environ.get("CONTENT_LENGTH") or ""
    expected = int(given) if given.isdigit() else None
    if expected is not None and expected > limit:
        raise RequestFailed(
            "body_too_large", f"The body is {expected} bytes; at most {limit} are taken."
        )
    if expected is None and not environ.get("wsgi.input_terminated"):
        return  # without a length or an end that the server marks there is no body (PEP 3333)
    size = 0
    while size != expected:
        piece = _read(stream, _PIECE if expected is None else min(_PIECE, expected - size))
        if not piece:
            break
        size += len(piece)
        if size > limit:
            raise RequestFailed("body_too_large", f"The body is over {limit} bytes.")
        take(piece)
    if expected is not None and size < expected:
        raise RequestFailed("body_cut_short", f"The body ended after {size} of {expected} bytes.")


def _read(stream: Any, size: int) -> bytes:
    """The next bytes of the stream. Raises `RequestFailed`, and `ClientGone`."""
    try:
        piece: bytes = stream.read(size)
    except TimeoutError as error:
        raise RequestFailed("body_too_slow", "The body did not arrive in time.") from error
    except ConnectionError as error:
        raise ClientGone from error
    except OSError as error:
        raise RequestFailed("body_cut_short", f"The body cannot be read: {error}.") from error
    except Exception as error:  # each server has its own errors
        raise RequestFailed("body_malformed", f"The body cannot be read: {error}.") from error
    return piece
