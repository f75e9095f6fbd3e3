"""Which web pages may use the gateway: it refuses requests for pages of other origins.

Browsers send the page's origin in `Origin` and `Sec-Fetch-Site` (the Fetch standard), which pages
cannot forge. Other clients send neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from nexus.config.admin_records import Cors

_EVERY = "*"
_METHODS = "GET, POST, DELETE, OPTIONS"
_USUAL_HEADERS = "authorization, content-type, x-request-id"
_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2000}")
REFUSAL = (
    "Requests from pages of other origins are refused; "
    "name the origin in [cors] origins to allow it."
)

Headers = list[tuple[str, str]]


def admits(headers: Mapping[str, str], origins: Sequence[str]) -> bool:
    """Whether a request may be served: for no page, for our own, or for a configured origin.

    A page is our own if its origin and the request name the same host, or if the browser says so.
    Behind a proxy that changes Host, only the browser knows.
    """
    if _EVERY in origins:
        return True
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is None:
        return site not in ("cross-site", "same-site")
    return (
        origin in origins
        or site == "same-origin"
        or origin.partition("://")[2] == headers.get("host", "").lower()
    )


def response_headers(origin: str | None, origins: Sequence[str]) -> Headers:
    """The headers that let a page of a configured origin read the response."""
    if origin is None or not origins:
        return []
    if _EVERY in origins:
        return [("access-control-allow-origin", _EVERY), ("access-control-expose-headers", "*")]
    if origin not in origins:
        return [("vary", "Origin")]
    return [
        ("access-control-allow-origin", origin),
        ("access-control-expose-headers", "*"),
        ("vary", "Origin"),
    ]


def preflight(headers: Mapping[str, str], cors: Cors) -> Headers | None:
    """The headers of the response to a preflight; None if its origin may not use the gateway."""
    allowed = response_headers(headers.get("origin"), cors.origins)
    if not admits(headers, cors.origins):
        return None
    requested = headers.get("access-control-request-headers", "")
    names = requested if _NAMES.fullmatch(requested) else _USUAL_HEADERS
    return [
        *(allowed or [("access-control-allow-origin", headers.get("origin", ""))]),
        ("access-control-allow-methods", _METHODS),
        ("access-control-allow-headers", names),
        ("access-control-max-age", str(cors.max_age_seconds)),
    ]
