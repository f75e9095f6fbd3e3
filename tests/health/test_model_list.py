"""The models of a backend: bounds of its list, and what the configuration states."""

from typing import Any

import pytest

from nexus.config import BackendConfig
from nexus.config.backend_records import ModelConfig
from nexus.health.model_list import MAX_MODELS, MAX_NAME_LENGTH, probe, with_configured
from nexus.providers.probing import BadProbeResponse, Model

LIST = {"/v1/models": {"data": [{"id": "plain"}, {"id": "other", "context_length": 8192}]}}


def models_of(answers: dict[str, Any], **config: Any) -> list[Model]:
    def fetch(path, body=None, *, version=None):
        if path not in answers:
            raise BadProbeResponse(f"{path} responded 404", alive=True)
        return answers[path]

    return probe(BackendConfig(name="b", url="http://b", **config), fetch).models


def test_names_and_lists_without_a_bound_are_refused():
    long = {"data": [{"id": "x" * (MAX_NAME_LENGTH + 1)}]}
    with pytest.raises(BadProbeResponse, match="257 characters; the limit is 256"):
        models_of({"/v1/models": long})
    assert len(models_of({"/v1/models": {"data": [{"id": "x" * MAX_NAME_LENGTH}]}})) == 1
    with pytest.raises(BadProbeResponse, match="257 characters"):
        models_of(
            {"/v1/models": {"data": [{"id": "m", "aliases": ["x" * (MAX_NAME_LENGTH + 1)]}]}},
        )
    many = {"data": [{"id": str(n)} for n in range(MAX_MODELS + 1)]}
    with pytest.raises(BadProbeResponse, match="10001 models; the limit is 10000"):
        models_of({"/v1/models": many})
    aliases = {"data": [{"id": "m", "aliases": [f"a{n}" for n in range(MAX_MODELS)]}]}
    with pytest.raises(BadProbeResponse, match="10001 models and aliases; the limit is 10000"):
        models_of({"/v1/models": aliases})


STATED = [
    ModelConfig(name="plain", context_length=512, tools=True),
    ModelConfig(name="added", vision=False, tasks=["chat"], aliases=["other"]),
]


def test_the_configuration_states_and_corrects():
    models = models_of(
        {"/v1/models": {"data": [{"id": "plain", "max_model_len": 1024}, {"id": "b"}]}},
        models=STATED,
    )
    assert models == [
        Model(name="plain", context_length=512, tools=True),
        Model(name="b"),
        Model(name="added", vision=False, tasks=("chat",), aliases=("other",)),
    ]


def test_a_backend_without_a_list():
    assert [model.name for model in models_of({}, models=STATED)] == ["plain", "added"]
    with pytest.raises(BadProbeResponse):
        models_of({})


def test_a_list_that_is_not_to_be_offered():
    answers = LIST
    models = models_of(answers, models=STATED, discover_models=False)
    assert [model.name for model in models] == ["plain", "added"]
    assert with_configured([], BackendConfig(name="b", url="http://b", models=STATED)) == models


def test_a_backend_that_is_not_asked_for_a_list():
    models = models_of({}, models=STATED, lists_models=False)
    assert [model.name for model in models] == ["plain", "added"]


def test_a_model_that_the_backend_calls_otherwise():
    stated = [ModelConfig(name="mine", upstream="other"), ModelConfig(name="new", upstream="x")]
    assert models_of(LIST, models=stated) == [
        Model(name="plain"),
        Model(name="mine", context_length=8192, upstream="other"),
        Model(name="new", upstream="x"),
    ]
