"""What the gateway believes of models, in front of backends that speak as Ollama, llama.cpp,
vLLM and LiteLLM do."""

import http.client
import json
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI

from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, clean_environ, get_json

pytestmark = pytest.mark.e2e

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
HELLO = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
IMAGE = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}],
    }
]

SAYS: dict[str, dict[str, Any]] = {
    "ol": {
        "/api/tags": {
            "models": [
                {
                    "name": "llama3.2:latest",
                    "details": {"context_length": 8192},
                    "capabilities": ["completion"],
                },
                {
                    "name": "nomic:latest",
                    "details": {"context_length": 2048},
                    "capabilities": ["embedding"],
                },
            ]
        },
        "/api/ps": {"models": [{"name": "llama3.2:latest", "context_length": 1024}]},
    },
    "lc": {
        "/v1/models": {
            "data": [
                {
                    "id": "/models/tiny.gguf",
                    "aliases": ["my-alias"],
                    "architecture": {"input_modalities": ["text"]},
                    "meta": {"n_ctx": 4096},
                }
            ]
        },
        "/props": {
            "default_generation_settings": {"n_ctx": 2048},
            "total_slots": 2,
            "modalities": {"vision": False},
            "chat_template_caps": {"supports_tools": True},
        },
    },
    "small": {
        "/v1/models": {"data": [{"id": "shared", "max_model_len": 1000}, {"id": "gpt-oss-120b"}]}
    },
    "large": {"/v1/models": {"data": [{"id": "shared", "max_model_len": 8000}]}},
    "bare": {"/v1/models": None},
    "wild": {
        "/v1/models": {
            "data": [{"id": "wild/*"}, {"id": "mock", "mode": "chat", "max_input_tokens": 16000}]
        }
    },
}
KINDS = {
    "ol": "ollama",
    "lc": "llamacpp",
    "small": "vllm",
    "large": "vllm",
    "bare": "generic",
    "wild": "generic",
}
MORE = {
    "small": "priority = 10",
    "bare": """
        [[backends.models]]
        name = "bare-model"
        context_length = 512
        tools = true
        json_mode = false
        tasks = ["chat"]
        aliases = ["bare"]
        """,
}
ROUTING = """
[routing.aliases]
mine = "llama3.2"
[routing.fallbacks]
"gpt-oss-120b" = ["/models/tiny.gguf"]
"bare-model" = ["mock"]
"""


@pytest.fixture(scope="module")
def demos(module_dir: Path) -> Iterator[dict[str, Demo]]:
    with ExitStack() as stack:
        found = {}
        for name, kind in KINDS.items():
            says = module_dir / f"{name}.json"
            says.write_text(json.dumps(SAYS[name]))
            found[name] = stack.enter_context(
                Demo(module_dir, name=name, kind=kind, says=says, pace=0)
            )
        yield found


@pytest.fixture(scope="module")
def gateway(module_dir: Path, demos: dict[str, Demo]) -> Iterator[Gateway]:
    backends = "".join(
        f'\n[[backends]]\nname = "{name}"\nurl = "{demos[name].url}"\ntype = "{kind}"\n'
        f"{MORE.get(name, '')}"
        for name, kind in KINDS.items()
    )
    with Gateway(module_dir, ROUTING + backends, workers=1) as gateway:
        until(lambda: listed(gateway)["/models/tiny.gguf"].get("context_length") == 2048)
        yield gateway


@pytest.fixture(params=["fast path", "through Flask"])
def post(request: pytest.FixtureRequest, gateway: Gateway):
    """Sends a body; gives status, headers, content, and what the request moved. A chunked body
    is Flask's."""

    def send(path: str, body: Any) -> tuple[int, dict[str, str], Any, dict[tuple[str, ...], float]]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        before = gateway.settled()
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
        flask = request.param == "through Flask"
        connection.request(
            "POST",
            path,
            body=iter([content]) if flask else content,
            encode_chunked=flask,
            headers={"content-type": "application/json"}
            | ({"transfer-encoding": "chunked"} if flask else {}),
        )
        response = connection.getresponse()
        found = (
            response.status,
            {name.lower(): value for name, value in response.headers.items()},
            response.read(),
        )
        connection.close()
        changes = moved(before, gateway.settled(), COUNTED)
        moves = {
            (family.removeprefix("nexus_"), *sorted(dict(labels).values())): n
            for (family, labels), n in changes.items()
        }
        return *found, moves

    return send


COUNTED = (
    "nexus_requests_total",
    "nexus_errors_total",
    "nexus_fallbacks_total",
    "nexus_retries_total",
)


def listed(gateway: Gateway) -> dict[str, dict[str, Any]]:
    entries = get_json(f"{gateway.base}/v1/models")["data"]
    found = {entry["id"]: entry for entry in entries}
    assert len(found) == len(entries), "each name once"
    return found


def said(gateway: Gateway, *words: str) -> str:
    command = [sys.executable, "-m", "nexus", *words, "-c", str(gateway.file)]
    return subprocess.run(command, env=clean_environ(), capture_output=True, text=True).stdout


def requests_of(model: str, backend: str, status: int = 200) -> tuple[str, ...]:
    return ("requests_total", *sorted((model, backend, str(status))))


def errors_of(error_type: str, model: str) -> tuple[str, ...]:
    return ("errors_total", *sorted((error_type, model)))


def test_the_list_has_each_name_once_and_says_what_is_known(gateway: Gateway):
    found = listed(gateway)
    assert sorted(found) == sorted(
        [
            "llama3.2:latest",
            "nomic:latest",
            "/models/tiny.gguf",
            "my-alias",
            "shared",
            "gpt-oss-120b",
            "bare-model",
            "bare",
            "wild/*",
            "mock",
            "mine",
        ]
    )
    seen = {
        name: {k: v for k, v in entry.items() if k not in ("id", "object", "created")}
        for name, entry in found.items()
    }
    text_only = {"vision": False, "tools": False}
    assert seen == {
        "llama3.2:latest": {
            "owned_by": "ol",
            "backends": ["ol"],
            "context_length": 1024,
            "capabilities": text_only,
        },
        "mine": {
            "owned_by": "ol",
            "backends": ["ol"],
            "context_length": 1024,
            "capabilities": text_only,
            "alias_of": "llama3.2:latest",
        },
        "nomic:latest": {
            "owned_by": "ol",
            "backends": ["ol"],
            "context_length": 2048,
            "capabilities": text_only,
            "tasks": ["embeddings"],
        },
        "/models/tiny.gguf": {
            "owned_by": "lc",
            "backends": ["lc"],
            "context_length": 2048,
            "capabilities": {"vision": False, "tools": True},
        },
        "my-alias": {
            "owned_by": "lc",
            "backends": ["lc"],
            "context_length": 2048,
            "capabilities": {"vision": False, "tools": True},
            "alias_of": "/models/tiny.gguf",
        },
        "shared": {"owned_by": "small", "backends": ["small", "large"], "context_length": 8000},
        "gpt-oss-120b": {"owned_by": "small", "backends": ["small"]},
        "bare-model": {
            "owned_by": "bare",
            "backends": ["bare"],
            "context_length": 512,
            "capabilities": {"tools": True, "json_mode": False},
            "tasks": ["chat"],
        },
        "bare": {
            "owned_by": "bare",
            "backends": ["bare"],
            "context_length": 512,
            "capabilities": {"tools": True, "json_mode": False},
            "tasks": ["chat"],
            "alias_of": "bare-model",
        },
        "wild/*": {"owned_by": "wild", "backends": ["wild"]},
        "mock": {
            "owned_by": "wild",
            "backends": ["wild"],
            "context_length": 16000,
            "tasks": ["chat"],
        },
    }


@pytest.mark.parametrize(
    ("name", "known_as"),
    [
        ("/models/tiny.gguf", None),
        ("llama3.2", "llama3.2:latest"),
        ("LLAMA3.2", "llama3.2:latest"),
        ("mine", "llama3.2:latest"),
        ("wild/any", "wild/any"),
        ("my-alias", "/models/tiny.gguf"),
    ],
)
def test_one_model(gateway: Gateway, name: str, known_as: str | None):
    client = OpenAI(base_url=f"{gateway.base}/v1", api_key="x", max_retries=0)
    for path in (urllib.parse.quote(name, safe=""), urllib.parse.quote(name)):
        entry = get_json(f"{gateway.base}/v1/models/{path}")
        assert entry["id"] == name
        assert entry.get("alias_of", name) == (known_as or name)
    assert client.models.retrieve(name).id == name


def test_no_such_model(gateway: Gateway):
    client = OpenAI(base_url=f"{gateway.base}/v1", api_key="x", max_retries=0)
    with pytest.raises(NotFoundError):
        client.models.retrieve("llama3.3")


@pytest.mark.parametrize(
    ("asked", "backend", "label", "sent"),
    [
        ("llama3.2", "ol", "llama3_2_latest", "llama3.2:latest"),
        ("Llama3.2:Latest", "ol", "llama3_2_latest", "llama3.2:latest"),
        ("mine", "ol", "llama3_2_latest", "llama3.2:latest"),
        ("my-alias", "lc", "_models_tiny_gguf", "/models/tiny.gguf"),
        ("bare", "bare", "bare_model", "bare-model"),
        ("bare-model", "bare", "bare_model", "bare-model"),
        ("wild/not-listed", "wild", "wild__", "wild/not-listed"),
    ],
)
def test_names_that_a_backend_takes(post, demos, asked, backend, label, sent):
    status, headers, _, moves = post(CHAT, {"model": asked, "messages": HELLO})
    assert (status, headers["x-nexus-backend"]) == (200, backend)
    assert "x-nexus-fallback-model" not in headers
    assert moves == {requests_of(label, backend): 1.0}
    assert json.loads(demos[backend].last()["body"])["model"] == sent


@pytest.mark.parametrize(
    "more", [{"tools": TOOLS}, {"messages": IMAGE}, {"response_format": {"type": "json_object"}}]
)
def test_what_is_not_known_is_sent_to_the_requested_model(post, more):
    """A fallback that is known to call tools is no reason to use it."""
    status, headers, _, moves = post(CHAT, {"model": "gpt-oss-120b", "messages": HELLO, **more})
    assert (status, headers["x-nexus-backend"]) == (200, "small")
    assert moves == {requests_of("gpt_oss_120b", "small"): 1.0}


def test_a_fallback_serves_what_the_model_is_known_not_to_do(post):
    body = {"model": "bare-model", "messages": HELLO, "response_format": {"type": "json_object"}}
    status, headers, _, moves = post(CHAT, body)
    assert (status, headers["x-nexus-backend"], headers["x-nexus-fallback-model"]) == (
        200,
        "wild",
        "mock",
    )
    assert moves == {
        requests_of("mock", "wild"): 1.0,
        ("fallbacks_total", "bare_model", "mock"): 1.0,
    }


@pytest.mark.parametrize(
    ("path", "body", "label", "lacking"),
    [
        (CHAT, {"model": "llama3.2", "messages": IMAGE}, "llama3_2_latest", "images"),
        (
            CHAT,
            {"model": "llama3.2", "messages": IMAGE, "tools": TOOLS},
            "llama3_2_latest",
            "images, tools",
        ),
        (CHAT, {"model": "nomic", "messages": HELLO}, "nomic_latest", "chat"),
        (EMBEDDINGS, {"model": "mock", "input": "x"}, "mock", "embeddings"),
    ],
)
def test_a_refusal_names_what_is_known_to_be_lacking(post, path, body, label, lacking):
    status, _, content, moves = post(path, body)
    error = json.loads(content)["error"]
    assert (status, error["code"]) == (400, "capability_mismatch")
    assert error["message"].endswith(f"can do what the request asks for: {lacking}.")
    assert moves == {
        requests_of(label, "none", 400): 1.0,
        errors_of("capability_mismatch", label): 1.0,
    }


def long_chat(characters: int) -> dict[str, Any]:
    return {"model": "shared", "messages": [{"role": "user", "content": "x" * characters}]}


@pytest.mark.parametrize(
    ("characters", "backend"),
    [(100, "small"), (3_000, "small"), (6_000, "large"), (1_000_000, "large")],
)
def test_a_context_decides_between_known_lengths(post, characters, backend):
    """The one that is too long for both goes to the larger, whose own response comes back."""
    status, headers, _, moves = post(CHAT, long_chat(characters))
    assert (status, headers["x-nexus-backend"]) == (200, backend)
    assert moves == {requests_of("shared", backend): 1.0}


@pytest.mark.parametrize(("path", "key"), [("/v1/completions", "prompt"), (EMBEDDINGS, "input")])
def test_batches_and_token_ids_are_no_long_prompts(post, path, key):
    for given in (["x" * 80] * 500, list(range(900)), [[1] * 900] * 20):
        status, headers, _, moves = post(path, {"model": "shared", key: given})
        assert (status, headers["x-nexus-backend"]) == (200, "small")
        assert moves == {requests_of("shared", "small"): 1.0}


EXCEEDED = "status=400,message=This model's maximum context length is 1000 tokens"


@pytest.fixture
def exceeded(demos: dict[str, Demo]) -> Iterator[None]:
    demos["small"].fault(EXCEEDED)
    yield
    for name in ("small", "large"):
        demos[name].fault("")


@pytest.mark.usefixtures("exceeded")
def test_a_larger_context_is_tried_where_a_backend_says_that_its_own_is_exceeded(post):
    status, headers, _, moves = post(CHAT, long_chat(100))
    assert (status, headers["x-nexus-backend"]) == (200, "large")
    assert moves == {
        requests_of("shared", "large"): 1.0,
        ("retries_total", "invalid_request", "small"): 1.0,
    }


@pytest.mark.usefixtures("exceeded")
def test_without_a_larger_context_the_backends_own_response_comes_back(post, demos):
    demos["large"].fault(EXCEEDED.replace("1000", "8000"))
    status, headers, content, moves = post(CHAT, long_chat(100))
    assert (status, headers["x-nexus-backend"]) == (400, "large")
    assert "8000 tokens" in json.loads(content)["error"]["message"]
    assert moves == {
        requests_of("shared", "large", 400): 1.0,
        errors_of("invalid_request", "shared"): 1.0,
        ("retries_total", "invalid_request", "small"): 1.0,
    }


@pytest.mark.usefixtures("exceeded")
def test_a_context_that_is_not_known_is_no_larger_one(post):
    status, headers, content, moves = post(CHAT, {"model": "gpt-oss-120b", "messages": HELLO})
    assert (status, headers["x-nexus-backend"]) == (400, "small")
    assert "1000 tokens" in json.loads(content)["error"]["message"]
    assert moves == {
        requests_of("gpt_oss_120b", "small", 400): 1.0,
        errors_of("invalid_request", "gpt_oss_120b"): 1.0,
    }


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b'{"model":"shared","Model":"gpt-oss-120b","messages":[{"content":"x"}]}', "Model"),
        (b'{"model":"shared","model":"gpt-oss-120b","messages":[{"content":"x"}]}', "model"),
        (b'{"model":"shared","messages":[{"content":"x"}],"Stream":true}', "Stream"),
        (b'{"Model":"shared","messages":[{"content":"x"}]}', "Model"),
        (
            b'{"model": "shared", "messages": [{}], "a": 1, "b": 2, "c": 3, "messages": [{}], "d": '
            b"4}",
            "messages",
        ),
    ],
)
def test_a_body_that_two_readers_understand_differently_is_refused(post, body, key):
    status, _, content, moves = post(CHAT, body)
    error = json.loads(content)["error"]
    assert (status, error["code"], error["param"]) == (400, "invalid_request", key)
    assert f"`{key}`" in error["message"]
    assert moves == {
        requests_of("unknown", "none", 400): 1.0,
        errors_of("invalid_request", "unknown"): 1.0,
    }


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"MODEL","temperature":NaN,"seed":-Infinity,"messages":[{"role":"user","content":"x"}]}',
        b'{"messages":[{"role":"user","content":"\\ud83d"}], "model" : "MODEL"}',
        b'\xef\xbb\xbf{"model":"MODEL","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"MODEL","stream":true,"stream_options":{"x":NaN},"messages":[{"role":"user","content":"x"}]}',
    ],
)
def test_what_strict_json_cannot_say_passes_as_it_came(post, demos, body):
    for name, label, sent in (
        ("shared", "shared", "shared"),
        ("mine", "llama3_2_latest", "llama3.2:latest"),
    ):
        status, headers, _, moves = post(CHAT, body.replace(b"MODEL", name.encode()))
        assert status == 200
        backend = headers["x-nexus-backend"]
        assert moves == {requests_of(label, backend): 1.0}
        went = demos[backend].last()["body"].encode("latin-1")
        asking = went.replace(b',"include_usage":true', b"").replace(b'"include_usage":true', b"")
        assert asking == body.replace(b"MODEL", sent.encode())


def test_embeddings_of_messages_pass(post, demos):
    status, headers, _, moves = post(EMBEDDINGS, {"model": "gpt-oss-120b", "messages": HELLO})
    assert (status, headers["x-nexus-backend"]) == (200, "small")
    assert moves == {requests_of("gpt_oss_120b", "small"): 1.0}
    assert json.loads(demos["small"].last()["body"])["messages"] == HELLO


def test_bodies_nested_to_any_depth_get_a_response(post):
    """By a model's name or an alias, and with or without a usage to request."""
    for depth in (100, *range(940, 1000, 3)):
        nested = b"[" * depth + b"]" * depth
        for model in (b"shared", b"mine"):
            body = b'{"model":"%b","messages":[{}],"stream":true,"stream_options":{},"x":%b}' % (
                model,
                nested,
            )
            status, _, content, moves = post(CHAT, body)
            assert status in (200, 400), content
            assert sum(n for (family, *_), n in moves.items() if family == "requests_total") == 1


def test_models_of_servers_without_a_usable_list_are_served_without_health_checks(
    tmp_path: Path, demos: dict[str, Demo]
):
    """No list, a list that fails, and one that names what the server refuses; one more has no
    models at all."""
    with (
        Demo(tmp_path, name="broken", models=["x"], kind="generic", pace=0) as broken,
        Demo(tmp_path, name="pinned", models=["cached"], kind="generic", pace=0) as pinned,
    ):
        stated = '[[backends.models]]\nname = "{0}-model"\n'
        fleet = {"bare": demos["bare"], "broken": broken, "pinned": pinned}
        config = "".join(
            f'\n[[backends]]\nname = "{name}"\nurl = "{demo.url}"\ntype = "generic"\n'
            f"{'discover_models = false' if name == 'pinned' else ''}\n{stated.format(name)}"
            for name, demo in fleet.items()
        )
        config += f'\n[[backends]]\nname = "none"\nurl = "{demos["bare"].url}"\ntype = "generic"\n'
        broken.fault("status=500,models")
        with Gateway(
            tmp_path, config, workers=1, health_check="enabled = false", timeout_s=30
        ) as gateway:
            assert sorted(listed(gateway)) == ["bare-model", "broken-model", "pinned-model"]
            lost = until(lambda: gateway.lines("the backend's models cannot be read"))
            assert [line["backend"] for line in lost] == ["none"], "said once"
            assert (
                "models of a server without this list go into [[backends.models]]" in lost[0]["why"]
            )
            until(lambda: "none has no models: /v1/models responded 404" in said(gateway, "status"))
            broken.fault("")
            for name in fleet:
                body = json.dumps({"model": f"{name}-model", "messages": HELLO}).encode()
                request = urllib.request.Request(
                    gateway.base + CHAT, body, {"content-type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=20) as answer:
                    assert json.load(answer)["choices"]
            assert gateway.settled().series("nexus_requests_total", "model", "backend") == {
                (f"{name}_model", name): 1 for name in fleet
            }


def test_commands_show_them(gateway: Gateway):
    lines = {line.split()[0]: line for line in said(gateway, "models").splitlines()}
    assert "2,048" in lines["/models/tiny.gguf"]
    assert "tools" in lines["/models/tiny.gguf"]
    assert lines["gpt-oss-120b"].split()[1:] == ["-", "-", "small"]
    assert "(as llama3.2:latest)" in lines["mine"]
    assert "llama3.2 is an alias of llama3.2:latest" in said(
        gateway, "route", "explain", "llama3.2"
    )
