"""Reranking, scores and moderation: over the fast path and through Flask."""

import json
from collections.abc import Iterator

import openai
import pytest
import requests

from tests.server.asking import ask
from tests.support.metrics import moved
from tests.support.processes import Demo, Gateway, backend_toml, get_json

pytestmark = pytest.mark.e2e

WAYS = {"fast path": {}, "Flask": {"NEXUS_WITHOUT_SHORT_WAY": "1"}}
DEFAULT = '[endpoints.default_models]\nmoderations = "judge"\n'
TASKS = '[[backends.models]]\nname = "{}"\ntasks = ["{}"]\n'
MODELS = {"chatty": "chat", "ranker": "rerank", "judge": "moderation"}
QUERY = {"model": "ranker", "query": "red fox", "documents": ["a blue bird", "a red fox", "a fox"]}
FAMILIES = (
    "nexus_requests_started_total",
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_tokens_total_sum",
)


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def served(request, tmp_path_factory) -> Iterator[tuple[Gateway, Demo]]:
    directory = tmp_path_factory.mktemp("json")
    stated = "".join(TASKS.format(*pair) for pair in MODELS.items())
    with Demo(directory, models=tuple(MODELS)) as demo:
        config = DEFAULT + backend_toml(demo) + stated
        with Gateway(directory, config, environ=request.param) as gateway:
            yield gateway, demo


class Moved:
    """What a request moves, by family and label values."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._before = gateway, gateway.settled()

    def by_labels(self) -> dict[str, float]:
        return {
            f"{name} {' '.join(value for _, value in sorted(labels))}": change
            for (name, labels), change in moved(
                self._before, self._gateway.settled(), FAMILIES
            ).items()
        }


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_documents_are_ordered(served, path):
    gateway, demo = served
    counted = Moved(gateway)
    body = json.dumps(QUERY).encode()
    reply = ask(gateway, path, body=body)
    found = json.loads(reply.content)
    assert [result["index"] for result in found["results"]] == [1, 2, 0]
    assert (demo.last()["target"], demo.last()["body"].encode()) == ("/v1/rerank", body)
    assert counted.by_labels() == {
        "nexus_requests_started_total rerank": 1,
        "nexus_requests_total demo ranker 200": 1,
        "nexus_tokens_total_sum demo ranker prompt": found["usage"]["total_tokens"],
    }


@pytest.mark.parametrize(
    ("one", "other"), [("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents")]
)
def test_pairs_are_scored(served, one, other):
    gateway, _ = served
    counted = Moved(gateway)
    body = {"model": "ranker", one: "red fox", other: ["blue", "red fox"]}
    found = requests.post(f"{gateway.base}/v1/score", json=body, timeout=10).json()
    assert [entry["score"] for entry in found["data"]] == [0.0, 1.0]
    assert counted.by_labels() == {
        "nexus_requests_started_total score": 1,
        "nexus_requests_total demo ranker 200": 1,
        "nexus_tokens_total_sum demo ranker prompt": found["usage"]["total_tokens"],
    }


@pytest.mark.parametrize("model", ["judge", openai.omit])
def test_texts_are_judged_by_the_clients_model_or_the_default(served, model):
    gateway, demo = served
    counted = Moved(gateway)
    with openai.OpenAI(base_url=f"{gateway.base}/v1", api_key="unused", max_retries=0) as client:
        found = client.moderations.create(input=["peace", "harm"], model=model)
        assert [result.flagged for result in found.results] == [False, True]
        assert json.loads(demo.last()["body"])["model"] == "judge"
        assert counted.by_labels() == {
            "nexus_requests_started_total moderations": 1,
            "nexus_requests_total demo judge 200": 1,
        }


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/rerank", {**QUERY, "model": "chatty"}, 400, "capability_mismatch"),
        ("/v1/chat/completions", {"model": "ranker", "messages": [{}]}, 400, "capability_mismatch"),
        ("/v1/rerank", {"model": "ranker", "documents": ["a"]}, 400, "invalid_request"),
        ("/v1/rerank", {"query": "a", "documents": ["a"]}, 400, "invalid_request"),
        ("/v1/moderations", {"model": 5, "input": "a"}, 400, "invalid_request"),
        ("/v1/moderations", {"input": None}, 400, "invalid_request"),
    ],
)
def test_refusals(served, path, body, status, code):
    gateway, _ = served
    reply = requests.post(gateway.base + path, json=body, timeout=10)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_models_list_their_tasks(served):
    gateway, _ = served
    listed = get_json(f"{gateway.base}/v1/models")["data"]
    assert {entry["id"]: entry["tasks"] for entry in listed} == {
        name: [task] for name, task in MODELS.items()
    }


def test_a_backend_that_lacks_the_endpoint_says_so_itself(served):
    gateway, demo = served
    demo.fault("status=501,message=This server does not support reranking")
    try:
        reply = ask(gateway, "/v1/rerank", body=json.dumps(QUERY).encode())
    finally:
        demo.fault("")
    assert reply.status == 400
    assert "does not support reranking" in json.loads(reply.content)["error"]["message"]
