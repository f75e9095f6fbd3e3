"""An endpoint is added by a row; everything else in the gateway follows."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from nexus.proxy.endpoints import ENDPOINTS
from nexus_demo import files, media, messages, responses, stored_responses
from tests.support.metrics import Scrape, moved
from tests.support.processes import ROOT, Demo, Gateway, backend_toml, clean_environ, get_json

pytestmark = pytest.mark.e2e

ROW = """
from nexus.dialects import openai
from nexus.dialects.base import PromptField, RequestForm
from nexus.proxy.endpoint_table import Endpoint
from nexus.proxy.endpoints import ENDPOINTS
from nexus_demo.responses import COMPUTED

ENDPOINTS.add(Endpoint(
    name="ranking", path="/v1/ranking", dialect=openai, methods=("POST", "PUT"),
    content_types=("application/json", "application/x-ranking+json"),
    form=RequestForm(prompts=(PromptField(name="documents", beside=("query",)),), task="rerank"),
    summary="Order documents",
))

def rank(request, *, usage):
    order = sorted(range(len(request["documents"])), key=lambda n: request["documents"][n])
    return {"results": [{"index": n} for n in order], "usage": {"total_tokens": 12}}

COMPUTED["/v1/ranking"] = rank
"""
"""Python runs `sitecustomize.py` at the start of every process, so all of the gateway's know it."""
QUERY = {"model": "demo-small", "query": "which?", "documents": ["b", "a"]}
FAST, FLASK = {}, {"NEXUS_WITHOUT_SHORT_WAY": "1"}


@pytest.fixture(scope="module")
def environ(module_dir: Path) -> dict[str, str]:
    (module_dir / "sitecustomize.py").write_text(ROW)
    return {"PYTHONPATH": os.pathsep.join([str(module_dir), str(ROOT)])}


@pytest.fixture(scope="module", params=[FAST, FLASK], ids=["fast path", "Flask"])
def gateway(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    environ: dict[str, str],
) -> Iterator[Gateway]:
    directory = tmp_path_factory.mktemp("ranking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environ["PYTHONPATH"])
        demo = Demo(directory, pace=0)
    with demo, Gateway(directory, backend_toml(demo), environ={**environ, **request.param}) as it:
        yield it


FAMILIES = (
    "nexus_requests_started_total",
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_upstream_attempts_total",
    "nexus_tokens_total_sum",
    "nexus_tokens_total_count",
)


def changes(before: Scrape, after: Scrape) -> dict[str, float]:
    """What a request has changed, by family and label values."""
    return {
        f"{name} {' '.join(value for _, value in sorted(labels))}": change
        for (name, labels), change in moved(before, after, FAMILIES).items()
    }


@pytest.mark.parametrize(
    "path", ["/v1/ranking", "/ranking", "/openai/deployments/demo-small/ranking"]
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_it_is_served_and_counted(gateway, path, method):
    before = gateway.settled()
    response = requests.request(method, gateway.base + path, json=QUERY, timeout=10)
    assert (response.status_code, response.json()["results"]) == (200, [{"index": 1}, {"index": 0}])
    assert changes(before, gateway.settled()) == {
        "nexus_requests_started_total ranking": 1,
        "nexus_requests_total demo demo_small 200": 1,
        "nexus_upstream_attempts_total demo ok": 1,
        "nexus_tokens_total_sum demo demo_small prompt": 12,
        "nexus_tokens_total_count demo demo_small prompt": 1,
    }


@pytest.mark.parametrize(
    ("method", "content_type", "body", "status", "code"),
    [
        ("GET", "application/json", None, 405, "method_not_allowed"),
        ("POST", "text/plain", QUERY, 415, "unsupported_media_type"),
        ("POST", "application/x-ranking+json", QUERY, 200, None),
        (
            "POST",
            "application/json",
            {"model": "demo-small", "documents": []},
            400,
            "invalid_request",
        ),
        ("POST", "application/json", {**QUERY, "model": "nobody"}, 404, "model_not_found"),
    ],
)
def test_its_requests_are_checked_by_the_row(gateway, method, content_type, body, status, code):
    before = gateway.settled().total("nexus_requests_total", status=str(status))
    response = requests.request(
        method,
        f"{gateway.base}/v1/ranking",
        data=json.dumps(body) if body else None,
        headers={"content-type": content_type},
        timeout=10,
    )
    assert response.status_code == status
    if code is not None:
        assert response.json()["error"]["code"] == code
    if status == 405:
        assert response.headers["allow"] == "POST, PUT"
    assert gateway.settled().total("nexus_requests_total", status=str(status)) == before + 1


def test_openapi_describes_it(gateway):
    paths = get_json(f"{gateway.base}/openapi.json")["paths"]
    assert set(paths["/v1/ranking"]) == {"post", "put"}
    body = paths["/v1/ranking"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["model", "documents", "query"]


def run(environ: dict[str, str], *command: str) -> str:
    return subprocess.run(
        [sys.executable, *command], env=clean_environ(**environ), cwd=ROOT, timeout=60,
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_the_bound_on_series_counts_it(environ):
    command = "-m", "nexus", "metrics", "bound", "--json"
    name = "nexus_requests_started_total"
    known, more = (json.loads(run(given, *command))["families"][name] for given in ({}, environ))
    assert (known, more) == (len(ENDPOINTS.names), len(ENDPOINTS.names) + 1)


def test_pages_and_balancers_name_it(environ):
    pages = (
        "import runpy; pages = runpy.run_path('docs/generate.py')['PAGES']; print(pages[{!r}]())"
    )
    for name, expected in {
        "docs/api.md": "`POST`, `PUT /v1/ranking`",
        "deploy/nginx/server.conf": "cancel|ranking|models)",
        "deploy/haproxy/nexus.cfg": "cancel|ranking)$",
        "deploy/apache/server.conf": "cancel|ranking|models)",
    }.items():
        assert expected in run(environ, "-c", pages.format(name)), name


def test_the_demo_backend_serves_every_endpoint():
    served = {*responses.GENERATED, *responses.COMPUTED, messages.PATH, *messages.COMPUTED}
    served |= {*stored_responses.PATHS, *files.PATHS, media.SPEECH, *media.FORMS}
    assert {endpoint.path for endpoint in ENDPOINTS} == served
