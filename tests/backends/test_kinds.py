"""How each kind of backend is read, from answers in the shapes that its documentation gives."""

import pytest

from nexus.backends import BadAnswer, capacity_of, probe_of
from nexus.fleet.records import Model

MODELS = {
    "object": "list",
    "data": [{"id": "qwen2.5:7b", "max_model_len": 32768}, {"id": "llava:13b"}, {"id": ""}, "x"],
}
TAGS = {"models": [{"name": "llama3.1:8b"}, {"name": "custom"}, {"name": "tiny"}]}
SHOW = {
    "llama3.1:8b": {"capabilities": ["completion", "tools"], "model_info": {"llama.context_length": 131072}},
    "custom": {"capabilities": ["completion", "vision"]},
}


def fetch(answers):
    def get(path, body=None, *, version=None):
        found = answers.get(path if body is None else (path, body["model"]))
        if found is None:
            raise BadAnswer(f"{path} answered 404")
        return found

    return get


@pytest.mark.parametrize("kind", ["openai", "generic", "lmstudio", "exo"])
def test_openai_and_its_like(kind):
    assert probe_of(kind)(fetch({"/v1/models": MODELS})) == [
        Model(name="qwen2.5:7b", tools=True),
        Model(name="llava:13b", vision=True),
    ]


def test_vllm_tells_its_context():
    first, second = probe_of("vllm")(fetch({"/v1/models": MODELS}))
    assert (first.context_length, first.context_known) == (32768, True)
    assert (second.context_length, second.context_known) == (4096, False)


def test_llamacpp_must_be_ok():
    healthy = fetch({"/health": {"status": "ok"}, "/v1/models": MODELS})
    assert len(probe_of("llamacpp")(healthy)) == 2
    with pytest.raises(BadAnswer, match="loading model"):
        probe_of("llamacpp")(fetch({"/health": {"status": "loading model"}, "/v1/models": MODELS}))


def test_ollama_tells_capabilities():
    answers = {"/api/tags": TAGS, **{("/api/show", name): shown for name, shown in SHOW.items()}}
    assert probe_of("ollama")(fetch(answers)) == [
        Model(name="llama3.1:8b", tools=True, context_length=131072, context_known=True),
        Model(name="custom", vision=True),
        Model(name="tiny"),
    ]


@pytest.mark.parametrize("kind", ["openai", "vllm", "ollama", "llamacpp"])
@pytest.mark.parametrize("answer", [None, [], {}, {"data": {}}, "text", 3])
def test_an_answer_of_another_shape_is_a_bad_one(kind, answer):
    answers = dict.fromkeys(("/v1/models", "/api/tags", "/health"), answer)
    with pytest.raises(BadAnswer):
        probe_of(kind)(fetch(answers))


def test_capacity():
    assert capacity_of("llamacpp")(fetch({"/props": {"total_slots": 4}})) == 4
    assert capacity_of("llamacpp")(fetch({"/props": {}})) is None
    assert capacity_of("llamacpp")(fetch({})) is None
    assert capacity_of("vllm")(fetch({})) is None
