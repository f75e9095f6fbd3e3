"""The OpenAI endpoints."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response, jsonify, request

from nexus.dialects.openai.errors import error_body
from nexus.proxy.endpoints import ENDPOINTS, Endpoint
from nexus.proxy.engine import Engine
from nexus.proxy.exchange import Exchange
from nexus.server.model_list import find_model, list_models
from nexus.server.wsgi import release, request_from

_ANY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def openai_endpoints(engine: Engine) -> Blueprint:
    """The proxied endpoints, which take every method so that a wrong one is counted too, and the models list."""
    blueprint = Blueprint("openai", __name__)
    for endpoint in ENDPOINTS:
        view = _proxied(engine, endpoint)
        blueprint.add_url_rule(
            endpoint.path, endpoint.name, view, methods=_ANY_METHOD, provide_automatic_options=False
        )

    @blueprint.get("/v1/models")
    def models() -> Response:
        view = engine.fleet.current()
        return jsonify(object="list", data=list_models(view) if view else [])

    @blueprint.get("/v1/models/<path:name>")
    def model(name: str) -> Response:
        view = engine.fleet.current()
        for given in (name, f"/{name}"):  # a slash at the front of a name is lost in the path
            if view is not None and (entry := find_model(view, given)) is not None:
                return jsonify(entry)
        message = f"The model {name[:200]!r} does not exist here."
        return Response(
            error_body(message, status=404, code="model_not_found", param="model"),
            404,
            mimetype="application/json",
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
