"""The page on which people see what their key, or their name, may use, and how much is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, abort, send_from_directory

from nexus.admin.context import AdminContext
from nexus.admin.dashboard import ASSETS, PAGE_HEADERS
from nexus.admin.pages import render

_FILES = ("styles.css", "my_key.js", "icon.svg")


def my_key_page(
    context: AdminContext, caller_of_request: Callable[[], dict[str, Any] | Response | None]
) -> Blueprint:
    """`/my-key`. The function returns what `/v1/key` shows; a refusal for a key that is not valid;
    None for a request without a key, whose page asks for one."""
    blueprint = Blueprint("my_key_page", __name__, url_prefix="/my-key")

    @blueprint.before_request
    def check_enabled() -> None:
        snapshot = context.snapshot()
        if snapshot is not None and not snapshot.config.dashboard.enabled:
            abort(404)

    @blueprint.get("")
    def my_key() -> Response:
        key = caller_of_request()
        if isinstance(key, Response):
            key.headers["cache-control"] = "no-store"
            return key
        page = render("my_key.html", key=key)
        return Response(page, mimetype="text/html", headers=PAGE_HEADERS)

    @blueprint.get("/<name>")
    def file(name: str) -> Response:
        if name not in _FILES:
            abort(404)
        response = send_from_directory(ASSETS, name)
        response.headers["cache-control"] = "no-cache"
        return response

    return blueprint
