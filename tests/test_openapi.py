"""`/openapi.json` says what the running gateway does: every path, every status that is provoked,
every key of every response."""

import json
import re
import urllib.error
import urllib.request

import jsonschema
import pytest
from flask import Flask
from openapi_spec_validator import validate

from nexus.admin.backends import backend_endpoints
from nexus.admin.budgets import budget_endpoints
from nexus.admin.keys import key_endpoints
from nexus.admin.openapi import document
from nexus.admin.usage import usage_endpoints
from nexus.app import create_app
from nexus.config import Config
from nexus.config.records import Server
from nexus.errors import FAULTS
from nexus.proxy.endpoints import ENDPOINTS
from tests.support.load import chat, run
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml


@pytest.mark.parametrize("operations", [False, True])
def test_document_is_openapi(operations):
    validate(document(operations=operations))


def routes(app: Flask) -> set[tuple[str, str]]:
    """(path, method) of every rule; a proxied path takes every method to refuse those that its
    endpoint does not have."""
    found = set()
    for rule in app.url_map.iter_rules():
        if rule.endpoint == "openai.own":
            continue  # it matches only what the configuration adds
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        path = path.replace("/models/{name}", "/models/{model}").replace("{stored_id}", "{id}")
        endpoint = ENDPOINTS.by_path.get(path)
        methods = rule.methods if endpoint is None else set(endpoint.methods)
        found |= {(path, method.lower()) for method in methods - {"HEAD", "OPTIONS"}}
    return found


def described(*, operations: bool) -> set[tuple[str, str]]:
    return {
        (path, method)
        for path, methods in document(operations=operations)["paths"].items()
        for method in methods
    }


def test_every_route_is_described(tmp_path):
    app = create_app(Config(server=Server(run_dir=str(tmp_path / "run"))), environ={})
    try:
        assert described(operations=False) == routes(app)
    finally:
        app.extensions["nexus"].close()
    admin = Flask("admin", static_folder=None)
    admin.register_blueprint(backend_endpoints(None))
    admin.register_blueprint(key_endpoints(None, token=str))
    admin.register_blueprint(budget_endpoints(None, None, token=str))
    admin.register_blueprint(usage_endpoints(None, token=str))
    assert {one for one in described(operations=True) if one[0].startswith("/admin")} == routes(
        admin
    )


def test_every_fault_is_described():
    responses = document(operations=False)["paths"]["/v1/chat/completions"]["post"]["responses"]
    for fault in FAULTS.values():
        if fault.status != 499:  # nobody is there to see it
            assert (
                f"`{fault.code}`: {fault.description}"
                in responses[str(fault.status or "default")]["description"]
            )


class Port:
    """One of the gateway's ports, whose responses are held against its own document."""

    def __init__(self, base: str, token: str = "") -> None:
        self.base = base
        self.token = token
        self.document = json.loads(self.ask("GET", "/openapi.json")[2])

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, str, bytes]:
        """(status, content type, body)."""
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.token}"}
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.base + path, data=content, headers=headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers["content-type"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["content-type"], error.read()

    def check(
        self, method: str, template: str, path: str = "", body: object = None
    ) -> tuple[int, bytes]:
        """Ask, and hold status, content type and every key of the response against what is
        described for `template`."""
        status, kind, content = self.ask(method, path or template, body)
        response = self.document["paths"][template][method.lower()]["responses"][str(status)]
        if "content" in response:
            schema = response["content"][kind.partition(";")[0]]["schema"]
            shown = json.loads(content) if "json" in kind else content.decode()
            jsonschema.validate(shown, schema | {"components": self.document["components"]})
        return status, content


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    directory = tmp_path_factory.mktemp("openapi")
    with (
        Demo(directory, models=["m"], pace=0) as demo,
        Demo(directory, name="bad", models=["broken"], fault="status=500") as bad,
        Gateway(directory, backend_toml(demo, bad)) as gateway,
    ):
        until(lambda: gateway.scrape().value("nexus_backends_healthy") == 2)
        asks = [
            chat("m", "m"),
            chat("m", "m", stream=True),
            chat("broken", "broken"),
            chat("unknown", "nothing"),
        ]
        run(gateway.port, asks, concurrency=1, seen=lambda *_: None)
        gateway.settled()
        gateway.token = (gateway.run_dir / "admin.token").read_text().strip()
        yield gateway


@pytest.mark.e2e
def test_responses_of_both_ports(gateway):
    for base in (gateway.base, gateway.operations):
        port = Port(base)
        assert port.document == document(operations=base == gateway.operations)
        for path in (
            "/metrics",
            "/v1/stats",
            "/v1/problems",
            "/v1/history",
            "/",
            "/health",
            "/livez",
            "/readyz",
            "/openapi.json",
        ):
            assert port.check("GET", path)[0] == 200
        assert port.check("GET", "/assets/{name}", "/assets/styles.css")[0] == 200
        assert port.check("GET", "/assets/{name}", "/assets/none")[0] == 404
        assert port.check("GET", "/v1/history", "/v1/history?limit=0")[0] == 400
        assert len(json.loads(port.check("GET", "/v1/history")[1])) == 4


@pytest.mark.e2e
def test_responses_to_clients(gateway):
    port = Port(gateway.base)
    messages = {"messages": [{"role": "user", "content": "hi"}]}
    chats = "/v1/chat/completions"
    assert port.check("GET", "/v1/models")[0] == 200
    assert port.check("GET", "/v1/models/{model}", "/v1/models/m")[0] == 200
    assert port.check("GET", "/v1/models/{model}", "/v1/models/nothing")[0] == 404
    assert port.check("POST", chats, body={"model": "m", **messages})[0] == 200
    assert port.check("POST", chats, body={"model": "m", "stream": True, **messages})[0] == 200
    assert port.check("POST", "/v1/completions", body={"model": "m", "prompt": "x"})[0] == 200
    assert port.check("POST", "/v1/embeddings", body={"model": "m", "input": "x"})[0] == 200
    assert port.check("POST", chats, body={"model": "nothing", **messages})[0] == 404
    message = "/v1/messages"
    assert port.check("POST", message, body={"model": "m", **messages})[0] == 200
    assert port.check("POST", message, body={"model": "nothing", **messages})[0] == 404
    assert port.check("POST", f"{message}/count_tokens", body={"model": "m", **messages})[0] == 200
    assert port.check("POST", chats, body={"model": "broken", **messages})[0] == 502
    assert port.check("POST", chats, body={"no": "model"})[0] == 400


@pytest.mark.e2e
def test_responses_to_operators(gateway):
    assert Port(gateway.operations, "wrong").check("GET", "/admin/backends")[0] == 401
    port = Port(gateway.operations, gateway.token)
    every, one, drain = "/admin/backends", "/admin/backends/{name}", "/admin/backends/{name}/drain"
    new = {"name": "spare", "url": "http://127.0.0.1:9", "type": "vllm"}
    assert port.check("GET", every)[0] == 200
    assert port.check("POST", every, body=new)[0] == 201
    assert port.check("POST", every, body=new)[0] == 409
    assert port.check("POST", every, body=new | {"name": "other", "tier": 9})[0] == 400
    assert port.check("POST", drain, "/admin/backends/spare/drain", {})[0] == 200
    assert (
        port.check("POST", "/admin/backends/{name}/undrain", "/admin/backends/spare/undrain", {})[0]
        == 200
    )
    assert port.check("DELETE", one, "/admin/backends/spare")[0] == 200
    assert port.check("DELETE", one, "/admin/backends/spare")[0] == 404
    assert port.check("POST", drain, "/admin/backends/spare/drain", {})[0] == 404
