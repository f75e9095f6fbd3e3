"""`/openapi.json` says what the running gateway does: every path, every status that is provoked,
every key of every response."""

import http.client
import json
import re
import urllib.error
import urllib.request
from contextlib import closing

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
from nexus.config.cost_records import SOME_USD, nano_usd
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
        if rule.endpoint == "openai.custom":
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
    admin.register_blueprint(backend_endpoints(None, token=str))
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


@pytest.mark.parametrize(
    "text",
    ["1", "0.000000001", "1234567.123456789000", "10", "0", "0.0", "", "-1", "12345678", "1.",
     ".5", "0.0000000001", "1.1234567890000", "1e3"],
)  # fmt: skip
def test_an_amount_is_described_as_it_is_read(text):
    assert bool(re.search(SOME_USD, text)) == bool(nano_usd(text))


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
            with error:
                return error.code, error.headers["content-type"], error.read()

    def allowed(self, method: str, path: str) -> set[str]:
        """The methods that the response to a method names."""
        connection = http.client.HTTPConnection(self.base.removeprefix("http://"), timeout=10)
        with closing(connection):
            connection.request(method, path, headers={"authorization": f"Bearer {self.token}"})
            return set(connection.getresponse().headers["allow"].split(", "))

    def check(
        self, method: str, template: str, path: str = "", body: object = None
    ) -> tuple[int, bytes]:
        """Ask, and hold status, content type and every key of the response against what is
        described for `template`."""
        status, kind, content = self.ask(method, path or template, body)
        response = self.document["paths"][template][method.lower()]["responses"][str(status)]
        if "content" in response:
            known = response["content"]
            schema = (known.get(kind.partition(";")[0]) or known["*/*"])["schema"]
            shown = json.loads(content) if "json" in kind else content.decode(errors="replace")
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
    assert port.check("POST", chats, body={"model": "m", "stream": None, **messages})[0] == 200
    assert port.check("POST", chats, body={"model": "m", "stream": "no", **messages})[0] == 400
    assert port.check("POST", "/v1/audio/speech", body={"model": "m", "input": "x"})[0] == 200
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


@pytest.mark.e2e
def test_each_path_names_its_own_methods(gateway):
    for base in (gateway.base, gateway.operations):
        port = Port(base, gateway.token)
        for template, methods in port.document["paths"].items():
            path = re.sub(r"{\w+}", "x", template)
            for method in ("OPTIONS", "TRACE"):
                named = port.allowed(method, path) - {"HEAD", "OPTIONS"}
                assert (template, named) == (template, {known.upper() for known in methods})
        assert port.ask("TRACE", "/nothing")[0] == 404


@pytest.mark.e2e
def test_changes_of_keys(gateway):
    port = Port(gateway.operations, gateway.token)
    every, one, rotate = "/admin/keys", "/admin/keys/{key_id}", "/admin/keys/{key_id}/rotate"
    last = "9999-12-31"
    nulls = dict.fromkeys(("id", "sha256", "expires", "models", "endpoints", "limits"))
    assert port.check("POST", every, body={"id": "mine"})[0] == 400
    status, content = port.check("POST", every, body={**nulls, "expires": last})
    made = json.loads(content)
    assert (status, made["expires"], made["state"]) == (201, last, "active")
    path = f"{every}/{made['id']}"
    try:
        limits = {"parallel": 2, "requests": "5/min"}
        for change, wanted in (
            ({"limits": limits}, (200, limits)),
            ({"limits": {"parallel": {}}}, (400, limits)),
            ({"limits": {"other": None}}, (400, limits)),
            ({"other": None}, (400, limits)),
            ({"name": {}}, (400, limits)),
            ({}, (200, limits)),
            ({"limits": {"requests": None}}, (200, {"parallel": 2})),
            ({"limits": {"parallel": None}}, (200, None)),
        ):
            status, _ = port.check("PATCH", one, path, change)
            state = json.loads(port.check("GET", one, path)[1])["limits"]
            shown = state and {name: value for name, value in state.items() if value is not None}
            assert (change, (status, shown)) == (change, wanted)
        request = urllib.request.Request(
            port.base + path, headers={"authorization": f"Bearer {port.token}"}, method="PATCH"
        )
        with pytest.raises(urllib.error.HTTPError, match="415") as refused:
            urllib.request.urlopen(request, timeout=10)
        refused.value.close()
        for grace_s, status in ((-1, 400), (366 * 86400 + 1, 400), (366 * 86400, 200)):
            body = {"grace_seconds": grace_s}
            assert port.check("POST", rotate, f"{path}/rotate", body)[0] == status
    finally:
        assert port.check("DELETE", one, path)[0] == 200


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 200),
        ("by=hour,key&from=2026-11-01&to=2026-12-01T00:00:00%2B01:00", 200),
        ("format=csv", 200),
        ("format=xml", 400),
        ("format=", 400),
        ("by=hours", 400),
        ("since=2026-11-01", 400),
        ("from=", 400),
        ("from=2026-02-30", 400),
        ("from=0001-01-01T00:00:00%2B14:00", 400),
        ("to=9999-12-31T23:59:59-10:00", 400),
        ("from=0001-01-01T00:00:00Z&to=9999-12-31", 200),
        ("from=2026-12-01&to=2026-11-01", 400),
        ("from=2026-12-01&to=2026-12-01", 400),
        ("by=key,key&format=csv", 200),
    ],
)
def test_queries_of_usage(gateway, query, status):
    port = Port(gateway.operations, gateway.token)
    assert port.check("GET", "/admin/usage", f"/admin/usage?{query}")[0] == status
