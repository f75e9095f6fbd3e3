"""A check that takes something, and one after it that refuses: on the fast path and through
Flask."""

import sys
from collections import Counter

import pytest
import requests

from tests.support.metrics import scrape
from tests.support.polling import until
from tests.support.processes import Demo, Process, backend_toml, clean_environ, free_port

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
ASK = {"model": "demo-small", "messages": [{"role": "user", "content": "Hello"}]}


class Checked:
    """A gateway with the checks of `checked_app`."""

    def __init__(self, base, permits):
        self.base = base
        self._permits = permits

    def permits(self):
        """How often each request has taken a permit and released it."""
        return Counter(self._permits.read_text().split("\n")[:-1])

    def post(self, request_id, *, body=None, **headers):
        given = {"x-request-id": request_id, **headers}
        url = f"{self.base}/v1/chat/completions"
        return requests.post(url, json=body or ASK, headers=given, timeout=10)

    def counted(self):
        s = scrape(self.base)
        assert s.value("nexus_accounting_imbalance") == 0
        return (
            s.total("nexus_requests_started_total"),
            s.total("nexus_requests_total"),
            s.total("nexus_requests_total", status="503"),
            s.total("nexus_errors_total", error_type="rate_limited"),
            s.total("nexus_upstream_attempts_total"),
        )

    def changed_since(self, before):
        """What a request has changed, once it is counted."""
        after = until(lambda: (now := self.counted())[1] > before[1] and now, within_s=5)
        return [now - then for now, then in zip(after, before, strict=True)]


@pytest.fixture(scope="module", params=WAYS)
def gateway(request, tmp_path_factory):
    directory, port = tmp_path_factory.mktemp("checked"), free_port()
    permits = directory / "permits"
    permits.touch()
    environ = clean_environ(
        NEXUS_RUN_DIR=str(directory / "run"), NEXUS_PORT=str(port), NEXUS_HOST="127.0.0.1",
        NEXUS_WORKERS="1", NEXUS_CONFIG=str(directory / "nexus.toml"), NEXUS_HEALTH_LISTEN="off",
        PERMITS=str(permits), **WAYS[request.param],
    )  # fmt: skip
    gunicorn = ["-m", "gunicorn", "-c", "gunicorn.conf.py", "tests.proxy.checked_app:app"]
    with Demo(directory, pace=0) as demo:
        (directory / "nexus.toml").write_text(backend_toml(demo))
        health = [sys.executable, "-m", "nexus.health"]
        with (
            Process(health, log=directory / "health.log", environ=environ),
            Process([sys.executable, *gunicorn], log=directory / "log", environ=environ),
        ):
            made = Checked(f"http://127.0.0.1:{port}", permits)
            until(lambda: scrape(made.base).value("nexus_backends_healthy") == 1, within_s=15)
            yield made


def test_a_refusal_releases_what_the_checks_before_it_took(gateway):
    before = gateway.counted()
    response = gateway.post("refused", **{"x-refuse": "1"})
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "Refused by a test."
    assert response.headers["x-request-id"] == "refused"
    permits = gateway.permits()
    assert (permits["taken refused"], permits["released refused"]) == (1, 1)
    assert gateway.changed_since(before) == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_served_request_releases_at_its_end(gateway, stream):
    before = gateway.counted()
    name = f"served-{stream}"
    response = gateway.post(name, body={**ASK, "stream": stream})
    assert response.status_code == 200
    until(lambda: gateway.permits()[f"released {name}"], within_s=5)
    permits = gateway.permits()
    assert (permits[f"taken {name}"], permits[f"released {name}"]) == (1, 1)
    assert gateway.changed_since(before) == [1, 1, 0, 0, 1]


def test_a_later_check_that_refuses_releases_too(gateway):
    response = gateway.post("no-model", body={"messages": []})
    assert response.status_code == 400
    permits = gateway.permits()
    assert (permits["taken no-model"], permits["released no-model"]) == (1, 1)


def test_the_models_list_runs_the_checks_of_the_caller(gateway):
    before = gateway.counted()
    url = f"{gateway.base}/v1/models"
    assert requests.get(url, headers={"x-request-id": "list"}, timeout=10).status_code == 200
    refused = {"x-request-id": "no-list", "x-refuse": "1"}
    assert requests.get(url, headers=refused, timeout=10).status_code == 503
    assert requests.get(f"{url}/demo-small", headers=refused, timeout=10).status_code == 503
    permits = gateway.permits()
    assert (permits["taken list"], permits["released list"]) == (1, 1)
    assert (permits["taken no-list"], permits["released no-list"]) == (2, 2)
    assert gateway.counted() == before, "requests for the list are no proxied requests"
