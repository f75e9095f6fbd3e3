"""The endpoints as Flask serves them, with a real demo backend behind."""

import json

import pytest

from nexus.app import create_app
from nexus.config import Config
from nexus.config.admin_records import Admin
from nexus.config.records import Server
from tests.support.metrics import Scrape

CHAT = {"model": "demo-small", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def fleet(publish, backend_at, demo):
    publish(
        backend_at(demo.url, "demo-small", "demo-large"),
        backend_at("http://127.0.0.1:1", "gone", name="down", status="unhealthy"),
    )


def test_before_any_fleet(client):
    answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 503
    assert answer.json["error"]["code"] == "no_backend"
    assert answer.headers["retry-after"] == "1"
    assert client.get("/v1/models").json == {"object": "list", "data": []}
    assert client.get("/livez").status_code == 200
    ready = client.get("/readyz?verbose")
    assert ready.status_code == 503
    assert b"[-] fleet_seen: no fleet was published yet" in ready.data
    assert client.get("/health").json["status"] == "unhealthy"
    scrape = Scrape(client.get("/metrics").text)
    assert scrape.value("nexus_errors_total", error_type="no_backend", model="unknown") == 1
    assert scrape.value("nexus_health_process_up") == 0


def test_before_any_fleet_the_token_is_required(run_dir, publish):
    """Whatever the configuration lists: it has not been read yet, or cannot be."""
    app = create_app(
        Config(server=Server(run_dir=str(run_dir))),
        environ={"NEXUS_ADMIN_TOKEN": "operators-own-token"},
    )
    client = app.test_client()
    paths = ("/", "/v1/history", "/v1/live", "/assets/dashboard.js", "/metrics", "/v1/stats")
    token = {"authorization": "Bearer operators-own-token"}
    try:
        assert [client.get(path).status_code for path in paths] == [401] * 6
        assert client.get("/metrics", headers=token).status_code == 200
        publish(admin=Admin(protect=[]))
        assert [client.get(path).status_code for path in ("/", "/metrics")] == [200, 200]
    finally:
        app.extensions["nexus"].close()


@pytest.mark.usefixtures("fleet")
def test_chat(client):
    answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200
    assert answer.json["choices"][0]["message"]["content"]
    assert answer.headers["x-nexus-backend"] == "a"
    stats = client.get("/v1/stats").json
    assert stats["requests"] == {"total": 1, "success": 1, "errors": 0}
    assert [entry["name"] for entry in stats["models"]] == ["demo-small"]


@pytest.mark.usefixtures("fleet")
def test_stream(client):
    answer = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.content_type == "text/event-stream; charset=utf-8"
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.usefixtures("fleet")
def test_models(client):
    listed = client.get("/v1/models").json["data"]
    assert [(m["id"], m["owned_by"], m["created"]) for m in listed] == [
        ("demo-small", "a", 1700000000), ("demo-large", "a", 1700000000),
    ]  # fmt: skip
    assert client.get("/v1/models/demo-large").json["id"] == "demo-large"
    missing = client.get("/v1/models/gone")
    assert (missing.status_code, missing.json["error"]["code"]) == (404, "model_not_found")


@pytest.mark.usefixtures("fleet")
def test_readiness_is_not_health(client):
    """One usable backend is enough, and a dead health process drains nobody."""
    assert client.get("/health").json["status"] == "degraded"
    ready = client.get("/readyz?verbose")
    assert ready.status_code == 200
    assert b"[!] health_process" in ready.data
    assert b"[!] fleet_fresh: never updated" in ready.data


@pytest.mark.usefixtures("fleet")
def test_unhealthy_backend(client):
    answer = client.post("/v1/chat/completions", json={**CHAT, "model": "gone"})
    assert answer.status_code == 503
    assert answer.json["error"]["code"] == "no_healthy_backend"
    assert answer.json["context"] == {
        "required_tier": None,
        "available_backends": ["a"],
        "eta_seconds": 5,
        "privacy_zone_required": None,
    }
    assert answer.headers["x-nexus-rejection-reasons"] == "model_not_found,unhealthy"
    assert json.loads(answer.headers["x-nexus-rejection-details"]) == [
        {"backend": "a", "reason": "model_not_found"},
        {"backend": "down", "reason": "unhealthy"},
    ]


@pytest.mark.usefixtures("fleet")
def test_head_is_counted_as_a_wrong_method(client):
    assert client.head("/v1/chat/completions").status_code == 405
    assert client.get("/v1/stats").json["requests"] == {"total": 1, "success": 0, "errors": 1}


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/responses", 426, "websocket_unsupported"),
        ("/v1/chat/completions", 426, "websocket_unsupported"),
        ("/v1/realtime", 404, "not_found"),
        ("/v1/models", 200, None),
    ],
)
def test_a_websocket_handshake_reaches_its_endpoint(client, path, status, code):
    """An endpoint that takes GET responds as usual (RFC 9110, section 7.8)."""
    answer = client.get(path, headers={"connection": "Upgrade", "upgrade": "websocket"})
    assert (answer.status_code, answer.json.get("error", {}).get("code")) == (status, code)
    scrape = Scrape(client.get("/metrics").text)
    counted = {("426",): 1} if status == 426 else {}
    assert scrape.series("nexus_requests_total", "status") == counted


def test_max_concurrent_requests(app, client, publish, backend_at, demo):
    publish(backend_at(demo.url, "demo-small"), server=Server(max_concurrent_requests=1))
    app.extensions["nexus"].recorder.request_started("chat_completions")  # one that is in progress
    answer = client.post("/v1/chat/completions", json=CHAT)
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "at_capacity")


def test_body_limit_is_the_snapshots(client, publish, backend_at, demo):
    publish(backend_at(demo.url, "demo-small"), server=Server(max_request_bytes=1024))
    answer = client.post("/v1/chat/completions", json={**CHAT, "user": "x" * 2000})
    assert (answer.status_code, answer.json["error"]["code"]) == (413, "body_too_large")


def test_a_second_process_without_hooks_counts_in_memory(app, run_dir, capfd):
    other = create_app(Config(server=Server(run_dir=str(run_dir))), environ={})
    assert other.extensions["nexus"].slot_lease.metrics is None
    assert other.test_client().get("/metrics").status_code == 200
    assert "metrics of this process stay in its memory" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code", "anthropic"),
    [
        ("GET", "/v1/nothing", {"anthropic-version": "2023-06-01"}, 404, "not_found", True),
        (
            "POST",
            "/v1/models",
            {"anthropic-version": "2023-06-01"},
            405,
            "method_not_allowed",
            True,
        ),
        ("POST", "/v1/messages/count_tokens", {}, 500, "internal", True),
        ("GET", "/v1/stats", {}, 500, "internal", False),
    ],
)
def test_what_flask_finds_is_in_the_dialect_of_the_client(
    app, method, path, headers, status, code, anthropic, monkeypatch, caplog
):
    def fail(*_, **__):
        raise ZeroDivisionError("a fault of ours")

    app.config["PROPAGATE_EXCEPTIONS"] = False  # as outside of tests
    if status == 500:
        app.before_request_funcs.setdefault(None, []).append(fail)
    client = app.test_client()
    answer = client.open(path, method=method, headers=headers)
    assert answer.status_code == status
    assert answer.json.get("type") == ("error" if anthropic else None)
    assert answer.json["error"]["code"] == code
    assert "fault of ours" not in answer.text
    logged = [record for record in caplog.records if record.exc_info]
    assert len(logged) == (status == 500)
    app.before_request_funcs.clear()
    scrape = Scrape(client.get("/metrics").text)
    assert scrape.series("nexus_http_rejected_total", "reason") == {(code,): 1}
    assert scrape.total("nexus_requests_total") == 0
