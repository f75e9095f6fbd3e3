"""How each kind of backend is read, from what real servers sent and from what their
documentation shows."""

from typing import Any

import pytest

from nexus.providers import PROVIDERS
from nexus.providers.probing import BadProbeResponse, Model

LLAMACPP_LIST = {
    "object": "list",
    "data": [
        {
            "id": "/models/tiny.gguf",
            "aliases": ["/models/tiny.gguf", "my-alias"],
            "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
            "owned_by": "llamacpp",
            "meta": {"n_ctx": 2048, "n_ctx_train": 8192},
        }
    ],
}
LLAMACPP_PROPS = {
    "default_generation_settings": {"n_ctx": 1024},
    "total_slots": 2,
    "modalities": {"vision": True, "video": False, "audio": False},
    "chat_template_caps": {"supports_tool_calls": True, "supports_tools": True},
}
OLLAMA_TAGS = {
    "models": [
        {
            "name": "tiny-tools:latest",
            "details": {"family": "llama", "context_length": 8192, "embedding_length": 64},
            "capabilities": ["completion", "tools"],
        },
        {
            "name": "seeing:13b",
            "details": {"family": "llama"},
            "capabilities": ["completion", "vision"],
        },
        {"name": "old:7b", "details": {}},
        {
            "name": "nomic-embed-text:latest",
            "details": {"context_length": 2048},
            "capabilities": ["embedding"],
        },
        {"name": "silent:1b"},
    ]
}
OLLAMA_SHOW = {
    "seeing:13b": {
        "capabilities": ["completion", "vision"],
        "model_info": {"llama.context_length": 4096},
    },
    "old:7b": {
        "capabilities": ["completion"],
        "parameters": 'stop                           "<|im_end|>"\n'
        "num_ctx                        1024",
        "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
    },
}
LMSTUDIO_LIST = {
    "data": [{"id": "qwen2-vl-7b"}, {"id": "llama-3.1-8b"}, {"id": "nomic"}, {"id": "new"}]
}
LMSTUDIO_DETAILS = {
    "data": [
        {"id": "qwen2-vl-7b", "type": "vlm", "state": "not-loaded", "max_context_length": 32768},
        {
            "id": "llama-3.1-8b", "type": "llm", "state": "loaded", "max_context_length": 131072,
            "loaded_context_length": 4096, "capabilities": ["tool_use"],
        },
        {"id": "nomic", "type": "embeddings", "state": "not-loaded", "max_context_length": 2048},
        {"id": "not-offered", "type": "llm"},
    ]
}  # fmt: skip
GENERIC_LIST = {
    "data": [
        {"id": "plain", "object": "model", "owned_by": "x", "created": 1786000000.5},
        {"id": "mock-gpt", "mode": "chat", "max_input_tokens": 16000, "max_output_tokens": 16384},
        {"id": "bge", "mode": "embedding", "max_input_tokens": None},
        {"id": "odd-mode", "mode": "video"},
        {
            "id": "router/seeing",
            "context_length": 128000,
            "architecture": {"input_modalities": ["text", "image"]},
            "supported_parameters": ["max_tokens", "tools", "response_format"],
        },
        {
            "id": "router/plain",
            "context_length": 8192,
            "architecture": {"input_modalities": ["text"]},
            "supported_parameters": ["max_tokens"],
        },
        {"id": "groq", "context_window": 8192, "active": True},
        {
            "id": "mistral", "max_context_length": 32768, "aliases": ["mistral-latest", "mistral"],
            "capabilities": {"completion_chat": True, "function_calling": True, "vision": False},
        },
        {"id": "BAAI/bge-small", "capabilities": ["embed", "rerank"], "stats": {}},
        {"id": "supports", "supports_vision": False, "supports_function_calling": True},
        {"id": ""},
        "x",
    ]
}  # fmt: skip


def fetch(answers: dict[Any, Any]):
    def get(path, body=None, *, version=None):
        found = answers.get(path if body is None else (path, body["model"]))
        if found is None:
            raise BadProbeResponse(f"{path} responded 404", alive=True)
        asked.append(path)
        return found

    asked: list[str] = []
    get.asked = asked
    return get


def models_of(kind: str, answers: dict[Any, Any]) -> list[Model]:
    return PROVIDERS[kind].probe(fetch(answers)).models


def test_anthropic_tells_how_long_responses_may_be():
    known = {"type": "model", "id": "claude", "max_input_tokens": 200_000, "max_tokens": 64_000}
    listed = {"data": [known, {"type": "model", "id": "old"}, {}]}
    assert models_of("anthropic", {"/v1/models?limit=1000": listed}) == [
        Model(name="claude", context_length=200_000, max_output_tokens=64_000),
        Model(name="old"),
    ]


@pytest.mark.parametrize("kind", ["openai", "generic", "exo"])
def test_lists_in_all_forms(kind):
    assert models_of(kind, {"/v1/models": GENERIC_LIST}) == [
        Model(name="plain"),
        Model(name="mock-gpt", context_length=16000, tasks=("chat",)),
        Model(name="bge", tasks=("embeddings",)),
        Model(name="odd-mode"),
        Model(name="router/seeing", context_length=128000, vision=True, tools=True, json_mode=True),
        Model(name="router/plain", context_length=8192, vision=False, tools=False),
        Model(name="groq", context_length=8192),
        Model(
            name="mistral",
            context_length=32768,
            vision=False,
            tools=True,
            aliases=("mistral-latest",),
        ),
        Model(name="BAAI/bge-small", tasks=("embeddings", "rerank")),
        Model(name="supports", vision=False, tools=True),
    ]


@pytest.mark.parametrize(
    "name", ["gpt-oss-120b", "llava:13b", "prod-llm", "gemma-4-31b-it", "qwen2.5:7b"]
)
@pytest.mark.parametrize("kind", ["openai", "vllm", "generic"])
def test_nothing_is_guessed_from_a_name(kind, name):
    assert models_of(kind, {"/v1/models": {"data": [{"id": name}]}}) == [Model(name=name)]


def test_vllm():
    answer = {
        "data": [
            {"id": "a", "root": "/models/a", "max_model_len": 1024},
            {"id": "b", "max_model_len": None},
        ]
    }
    assert models_of("vllm", {"/v1/models": answer}) == [
        Model(name="a", context_length=1024),
        Model(name="b"),
    ]


def test_llamacpp():
    answers = {"/health": {"status": "ok"}, "/v1/models": LLAMACPP_LIST, "/props": LLAMACPP_PROPS}
    assert models_of("llamacpp", answers) == [
        Model(
            name="/models/tiny.gguf",
            context_length=1024,
            vision=True,
            tools=True,
            aliases=("my-alias",),
        )
    ]
    no_tools = LLAMACPP_PROPS | {
        "chat_template_caps": {"supports_tools": False},
        "modalities": {"vision": False},
    }
    (model,) = models_of("llamacpp", answers | {"/props": no_tools})
    assert (model.vision, model.tools) == (False, False)


def test_llamacpp_without_props():
    answers = {"/health": {"status": "ok"}, "/v1/models": LLAMACPP_LIST}
    (model,) = models_of("llamacpp", answers)
    assert (model.context_length, model.vision, model.tools) == (2048, False, None)
    several = {"data": [{"id": "a", "meta": {"n_ctx": 512}}, {"id": "b"}]}
    assert models_of("llamacpp", answers | {"/v1/models": several, "/props": LLAMACPP_PROPS}) == [
        Model(name="a", context_length=512),
        Model(name="b"),
    ], "its router's /props speaks of no model"


def test_llamacpp_must_be_ok():
    loading = {"/health": {"status": "loading model"}, "/v1/models": LLAMACPP_LIST}
    with pytest.raises(BadProbeResponse, match="loading model") as failed:
        models_of("llamacpp", loading)
    assert not failed.value.alive


def test_lmstudio():
    answers = {"/v1/models": LMSTUDIO_LIST, "/api/v0/models": LMSTUDIO_DETAILS}
    assert models_of("lmstudio", answers) == [
        Model(name="qwen2-vl-7b", context_length=32768, vision=True),
        Model(name="llama-3.1-8b", context_length=4096, vision=False, tools=True),
        Model(name="nomic", context_length=2048, tasks=("embeddings",)),
        Model(name="new"),
    ]
    assert models_of("lmstudio", {"/v1/models": LMSTUDIO_LIST})[0] == Model(name="qwen2-vl-7b"), (
        "an old version"
    )


def test_ollama():
    get = fetch(
        {
            "/api/tags": OLLAMA_TAGS,
            **{("/api/show", name): shown for name, shown in OLLAMA_SHOW.items()},
        }
    )
    assert PROVIDERS["ollama"].probe(get).models == [
        Model(name="tiny-tools:latest", context_length=8192, vision=False, tools=True),
        Model(name="seeing:13b", context_length=4096, vision=True, tools=False),
        Model(name="old:7b", context_length=1024, vision=False, tools=False),
        Model(
            name="nomic-embed-text:latest",
            context_length=2048,
            vision=False,
            tools=False,
            tasks=("embeddings",),
        ),
        Model(name="silent:1b"),
    ]
    assert get.asked == ["/api/tags", "/api/show", "/api/show"], (
        "not for models that the list describes"
    )


def test_ollama_says_how_a_model_is_loaded():
    running = {"models": [{"name": "tiny-tools:latest", "context_length": 1024}]}
    assert (
        models_of("ollama", {"/api/tags": OLLAMA_TAGS, "/api/ps": running})[0].context_length
        == 1024
    )


@pytest.mark.parametrize("kind", ["openai", "vllm", "ollama", "llamacpp", "lmstudio"])
@pytest.mark.parametrize("answer", [None, [], {}, {"data": {}}, "text", 3])
def test_a_response_of_another_shape_is_a_bad_one(kind, answer):
    with pytest.raises(BadProbeResponse):
        models_of(kind, dict.fromkeys(("/v1/models", "/api/tags", "/health"), answer))


@pytest.mark.parametrize("odd", [3, "x", [], {}, True, None, [3], {"a": []}])
@pytest.mark.parametrize("kind", ["openai", "vllm", "ollama", "llamacpp", "lmstudio"])
def test_odd_values_are_not_known(kind, odd):
    keys = (
        "max_model_len",
        "meta",
        "architecture",
        "supported_parameters",
        "capabilities",
        "mode",
        "aliases",
        "details",
        "context_length",
        "supports_vision",
    )
    item = {"id": "m", "name": "m", **dict.fromkeys(keys, odd)}
    detail = {
        "id": "m",
        "type": odd,
        "state": odd,
        "loaded_context_length": odd,
        "max_context_length": odd,
    }
    answers = {
        "/health": {"status": "ok"},
        "/v1/models": {"data": [item]},
        "/api/tags": {"models": [item]},
        "/api/v0/models": {"data": [detail, odd]},
        "/api/ps": {"models": [odd, {"name": "m", "context_length": odd}]},
        "/props": {
            "modalities": odd,
            "chat_template_caps": odd,
            "default_generation_settings": odd,
        },
        ("/api/show", "m"): {"capabilities": odd, "model_info": odd, "parameters": odd},
    }
    (model,) = models_of(kind, answers)
    assert model.name == "m"
    assert model.context_length in (None, 3)
    assert model.tasks == model.aliases == ()


def test_capacity():
    def capacity(answers):
        shown = {"/health": {"status": "ok"}, "/v1/models": LLAMACPP_LIST} | answers
        return PROVIDERS["llamacpp"].probe(fetch(shown)).capacity

    assert capacity({"/props": {"total_slots": 4}}) == 4
    assert capacity({"/props": {}}) is None
    assert capacity({}) is None
