"""Settings of `[endpoints]` that contradict the gateway."""

import re

import pytest

from nexus.app import create_app
from nexus.config.backend_records import BackendConfig
from nexus.config.consistency import find_conflicts
from nexus.config.endpoint_records import PATHS, CustomEndpoint, Endpoints
from nexus.config.records import Config, Server
from nexus.proxy.endpoints import ENDPOINTS

VOICES = CustomEndpoint(path="/v1/audio/voices")


def problems(*custom: CustomEndpoint, files: str | None = None) -> list[str]:
    backend = BackendConfig(name="main", url="http://127.0.0.1:1", type="generic")
    endpoints = Endpoints(files=files, custom=list(custom))
    return list(find_conflicts(Config(backends=[backend], endpoints=endpoints)))


def own(**settings) -> CustomEndpoint:
    return CustomEndpoint(**{"path": "/v1/audio/voices", **settings})


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (own(path="/v1/chat/completions"), 'path = "/v1/chat/completions" belongs to the gateway'),
        (own(path="/embeddings"), 'path = "/embeddings" belongs to the gateway; choose another'),
        (own(path="/v1/files/mine"), 'path = "/v1/files/mine" belongs to the gateway; choose'),
        (own(path="/v1/a b"), 'path = "/v1/a b" is not allowed; it takes a slash and segments'),
        (own(path="/v1/../metrics"), 'path = "/v1/../metrics" is not allowed; it takes a slash'),
        (own(path="/v1/voices/"), 'path = "/v1/voices/" is not allowed; it takes a slash and'),
        (own(model="body.engine"), 'model = "body.engine" is not allowed; it takes "body.model",'),
        (own(model="backend:"), 'model = "backend:" is not allowed; it takes "body.model",'),
        (own(model="backend:mian"), 'model = "backend:mian" does not exist; did you mean main?'),
        (own(model="form:model"), 'model = "form:model" needs body = "multipart"; set that, or'),
        (own(body="none"), 'model = "body.model" needs body = "json"; set that, or name a backend'),
        (own(name="Voices"), 'name = "Voices" is not allowed; set one of at most 40 lower case'),
        (own(path="/v1/3d"), '"/v1/3d" name = "3d" is not allowed; set one of at most 40 lower'),
        (own(name="speech"), '"/v1/audio/voices" name = "speech" is used already; set another'),
    ],
)
def test_an_endpoint_that_cannot_be(given, problem):
    (found,) = problems(given)
    assert found.startswith("[[endpoints.custom]] ")
    assert problem in found


def test_two_that_are_alike():
    paths = problems(VOICES, own(path="/audio/voices", name="other"))
    assert paths == [
        '[[endpoints.custom]] path = "/audio/voices" is used twice, with /v1 or without; remove '
        "one of the two."
    ]
    (names,) = problems(VOICES, own(path="/v1/audio-voices"))
    assert 'name = "audio_voices" is used already' in names
    (many,) = problems(*(own(path=f"/v1/x/{n}") for n in range(33)))
    assert "has 33 entries; at most 32 are allowed" in many


def test_endpoints_that_can_be():
    assert not problems(
        VOICES,
        own(path="/tokenize"),
        own(path="/v1/images/upscale", body="multipart", model="form:model"),
        own(path="/version", body="none", model="backend:main", streams=True),
        files="main",
    )


def test_every_path_of_the_gateway_is_taken(tmp_path):
    app = create_app(Config(server=Server(run_dir=str(tmp_path / "run"))), environ={})
    app.extensions["nexus"].close()
    paths = {re.sub("<.+>", "x", rule.rule) for rule in app.url_map.iter_rules()}
    paths |= {path for endpoint in ENDPOINTS for path in endpoint.other_paths}
    for path in paths - {"/", "/x"}:
        assert any("belongs to the gateway" in problem for problem in problems(own(path=path))), (
            path
        )
    assert set(PATHS) <= paths | {"/metrics"}


def test_a_backend_that_does_not_exist():
    assert problems(files="kept") == [
        '[endpoints] files = "kept" does not exist; name one of [[backends]], or remove it.'
    ]
