"""Keys and teams that contradict the gateway."""

import pytest

from nexus.config.access_records import ENDPOINTS, Key, Team
from nexus.config.consistency import find_conflicts
from nexus.config.endpoint_records import CustomEndpoint, Endpoints
from nexus.config.records import Config
from nexus.proxy import endpoints


def test_the_names_are_those_of_the_endpoints():
    assert set(ENDPOINTS) == {endpoint.name for endpoint in endpoints.ENDPOINTS}


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            Config(teams=[Team(name="a", endpoints=["embedings"])]),
            '[[teams]] "a" endpoints = "embedings" does not exist; did you mean embeddings?',
        ),
        (
            Config(keys=[Key(id="k", sha256=["0" * 64], endpoints=["embeddings", "video"])]),
            f'[[keys]] "k" endpoints = "video" does not exist; known are {", ".join(ENDPOINTS)}.',
        ),
        (Config(teams=[Team(name="a", endpoints=list(ENDPOINTS))]), None),
        (
            Config(
                teams=[Team(name="a", endpoints=["audio_voices"])],
                endpoints=Endpoints(custom=[CustomEndpoint(path="/v1/audio/voices")]),
            ),
            None,
        ),
    ],
)
def test_endpoints_of_keys_and_teams(config, problem):
    assert list(find_conflicts(config)) == ([problem] if problem else [])
