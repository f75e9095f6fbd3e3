"""The operators' page of keys: complete without scripts; a script sends the changes as JSON."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response

from nexus.admin.context import AdminContext
from nexus.admin.dashboard import PAGE_HEADERS, require_operator
from nexus.admin.keys import KeyAdmin
from nexus.admin.pages import render


def keys_page(context: AdminContext, admin: KeyAdmin, *, token: Callable[[], str]) -> Blueprint:
    """`/keys`. `token` returns the operators' token.

    Reading takes it as the password that a browser asks for, too. The changes of the script go to
    `/admin/keys`, which takes it as a bearer token only.
    """
    blueprint = Blueprint("keys_page", __name__)
    blueprint.before_request(require_operator(context, token))

    @blueprint.get("/keys")
    def keys() -> Response:
        snapshot = context.snapshot()
        page = render(
            "keys.html",
            listed=admin.keys(),
            teams=[team.name for team in snapshot.config.teams] if snapshot else [],
            port=snapshot.config.server.port if snapshot else 0,
        )
        return Response(page, mimetype="text/html", headers=PAGE_HEADERS)

    return blueprint
