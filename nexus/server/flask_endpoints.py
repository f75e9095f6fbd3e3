"""The clients' endpoints: the proxied ones, and the list of models in the form of both APIs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response, abort, after_this_request, jsonify, request
from werkzeug.routing import PathConverter, Rule, ValidationError

from nexus.access.callers import ANONYMOUS, Caller
from nexus.dialects import anthropic, openai
from nexus.dialects.base import RequestForm
from nexus.proxy.endpoint_table import STORED_ID, Endpoint
from nexus.proxy.endpoints import ENDPOINTS
from nexus.proxy.engine import ClientResponse, Engine
from nexus.proxy.own_error import own_error
from nexus.proxy.request import Request
from nexus.proxy.serve import check_caller, serve
from nexus.server.caller_key import describe_key
from nexus.server.model_list import anthropic_list, find_model, in_anthropic_form, list_models
from nexus.server.wsgi import release, request_from

_MODELS = Endpoint(
    name="models",
    path="/v1/models",
    dialect=openai,
    form=RequestForm(prompts=(), task=""),
    summary="List models",
    methods=("GET",),
    body="none",
)
_ANTHROPIC_MODELS = replace(_MODELS, dialect=anthropic)
_KEY = replace(_MODELS, name="key", path="/v1/key", summary="Show the caller's key")


class _CustomPath(PathConverter):
    """Matches custom endpoints, which a reload may change."""

    def to_python(self, value: str) -> Endpoint:
        endpoint = ENDPOINTS.at(f"/{value}")
        if endpoint is None or not endpoint.custom:
            raise ValidationError
        return endpoint


def _asks_in_anthropics_form() -> bool:
    """Whether it is a client of Anthropic's API, which sends this header."""
    return "anthropic-version" in request.headers


def _models_endpoint() -> Endpoint:
    return _ANTHROPIC_MODELS if _asks_in_anthropics_form() else _MODELS


def openai_endpoints(engine: Engine) -> Blueprint:
    """The proxied endpoints, which accept every method to count wrong ones, and the models list."""
    blueprint = Blueprint("openai", __name__)
    blueprint.record_once(lambda state: state.app.url_map.converters.update(custom=_CustomPath))

    def add(path: str, name: str, view: Callable[..., Response]) -> None:
        # A rule with methods would allow them in 405 and OPTIONS of every path that it may match.
        rule = Rule(path, endpoint=f"{blueprint.name}.{name}")
        blueprint.record_once(lambda state: state.app.url_map.add(rule))
        blueprint.endpoint(rule.endpoint)(view)

    add(
        "/<custom:endpoint>",
        "custom",
        lambda endpoint: _response(serve(engine, _given(engine, endpoint))),
    )
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{id}", "<stored_id>")
        add(path, endpoint.path, _proxied(engine, endpoint))

    @blueprint.get("/v1/models")
    def models() -> Response:
        caller, refusal = _check_caller(engine)
        if refusal is not None:
            return refusal
        view = engine.fleet.current()
        entries = list_models(view, caller) if view else []
        if _asks_in_anthropics_form():
            return jsonify(anthropic_list(entries))
        return jsonify(object="list", data=entries)

    @blueprint.get("/v1/models/<path:name>")
    def model(name: str) -> Response:
        caller, refusal = _check_caller(engine)
        if refusal is not None:
            return refusal
        view = engine.fleet.current()
        for given in (name, f"/{name}"):  # a slash at the front of a name is lost in the path
            if view is not None and (entry := find_model(view, given, caller)) is not None:
                return jsonify(in_anthropic_form(entry) if _asks_in_anthropics_form() else entry)
        headers, content = own_error(
            _models_endpoint().dialect,
            f"The model {name[:200]!r} does not exist here.",
            status=404,
            code="model_not_found",
            param="model",
            given_id=request.headers.get("x-request-id"),
        )
        return Response(content, 404, headers)

    @blueprint.get("/v1/key")
    def key() -> Response:
        caller, refusal = _check_caller(engine, _KEY)
        if refusal is not None:
            return refusal
        response = jsonify(_shown_key(engine, caller))
        response.headers["cache-control"] = "no-store"
        return response

    return blueprint


def _proxied(engine: Engine, endpoint: Endpoint) -> Callable[..., Response]:
    def view(stored_id: str = "") -> Response:
        if stored_id and not STORED_ID.fullmatch(stored_id):
            abort(404)
        return _response(serve(engine, _given(engine, endpoint, stored_id)))

    return view


def _shown_key(engine: Engine, caller: Caller | None) -> dict[str, Any]:
    view, caller = engine.fleet.current(), caller or ANONYMOUS
    limits = view.limits if view is not None else None
    levels = engine.limiter.levels(caller, limits) if limits is not None else []
    return describe_key(caller, levels, engine.budgets_of(caller))


def caller_of_request(engine: Engine) -> dict[str, Any] | Response | None:
    """What `/v1/key` shows to Flask's request; a refusal for a key that is not valid; None for a
    request without a key, unless a proxy has signed in its user."""
    view = engine.fleet.current()
    callers = view.callers if view is not None else None
    if callers is None:
        return None
    with_key = callers.carries_key({name.lower(): value for name, value in request.headers})
    if not with_key and callers.identities is None:
        return None
    caller, refusal = _check_caller(engine, _KEY)
    if refusal is not None and not with_key:
        refusal.close()
        return None
    if refusal is None and (caller is None or caller is ANONYMOUS):
        return None
    return refusal or _shown_key(engine, caller)


def _check_caller(
    engine: Engine, endpoint: Endpoint | None = None
) -> tuple[Caller | None, Response | None]:
    """The caller of a request that no backend serves, and the refusal if it is not allowed.

    Without `endpoint`, the request is for the models list.
    """
    caller, refusal = check_caller(engine, _given(engine, endpoint or _models_endpoint()))
    if refusal is not None:
        return caller, _response(refusal)
    after_this_request(_released_when_written)
    return caller, None


def _given(engine: Engine, endpoint: Endpoint, stored_id: str = "") -> Request:
    """Flask's request in the engine's form."""
    timeout_s = engine.server().client_timeout_seconds
    return request_from(
        request.environ,
        endpoint,
        stored_id=stored_id,
        received=engine.clock(),
        client_timeout_s=timeout_s,
    )


class _Untyped(Response):
    """A response that gets no content type which the engine did not give it."""

    default_mimetype = None


def _response(client_response: ClientResponse) -> Response:
    return _released_when_written(
        _Untyped(client_response.body, client_response.status, client_response.headers)
    )


def _released_when_written(response: Response) -> Response:
    """Keep the client's timeout on its socket until the whole response is written."""
    environ = request.environ
    response.call_on_close(lambda: release(environ))
    return response
