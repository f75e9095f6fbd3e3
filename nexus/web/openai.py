"""The OpenAI endpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flask import Blueprint, Response, jsonify, request

from nexus.errors import error_body
from nexus.proxy.endpoints import ENDPOINTS, Endpoint
from nexus.proxy.engine import Engine
from nexus.proxy.exchange import Exchange
from nexus.proxy.view import View
from nexus.web.wsgi import release, request_from

_ANY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def openai_endpoints(engine: Engine) -> Blueprint:
    """The proxied endpoints, which take every method so that a wrong one is counted too, and the models list."""
    blueprint = Blueprint("openai", __name__)
    for endpoint in ENDPOINTS:
        view = _proxied(engine, endpoint)
        blueprint.add_url_rule(endpoint.path, endpoint.name, view, methods=_ANY_METHOD, provide_automatic_options=False)

    @blueprint.get("/v1/models")
    def models() -> Response:
        return jsonify(object="list", data=list(_models(engine.fleet.current())))

    @blueprint.get("/v1/models/<path:name>")
    def model(name: str) -> Response:
        view = engine.fleet.current()
        resolved = view.table.resolve(name) if view else name
        for entry in _models(view):
            if entry["id"] == resolved:
                return jsonify({**entry, "id": name})
        message = f"The model {name[:200]!r} does not exist here."
        return Response(
            error_body(message, status=404, code="model_not_found", param="model"), 404, mimetype="application/json"
        )

    return blueprint


def _proxied(engine: Engine, endpoint: Endpoint) -> Callable[[], Response]:
    def view() -> Response:
        environ = request.environ
        received = engine.clock()
        timeout_s = engine.server().client_timeout_seconds
        given = request_from(environ, endpoint, received=received, client_timeout_s=timeout_s)
        answer = Exchange(engine, given, endpoint).answer()
        response = Response(answer.body, answer.status, answer.headers)
        response.call_on_close(lambda: release(environ))
        return response

    return view


def _models(view: View | None) -> Iterator[dict[str, Any]]:
    """One entry for each model on each healthy backend, as the original lists them."""
    if view is None:
        return
    for backend in view.snapshot.backends:
        if backend.usable:
            for model in backend.models:
                yield {
                    "id": model.name,
                    "object": "model",
                    "created": int(backend.since),
                    "owned_by": backend.name,
                    "context_length": model.context_length,
                }
