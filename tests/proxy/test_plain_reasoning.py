"""A conversation with reasoning as a text goes on at a service that refuses such reasoning."""

import json

import pytest

from tests.access.limited import WAYS
from tests.dialects.test_plain_reasoning import CALL, PLAIN, SAID
from tests.server.asking import ask
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("way", WAYS)
def test_only_openais_service_does_not_get_it(tmp_path, way):
    with (
        Demo(tmp_path, name="service", models=["gpt"], pace=0) as service,
        Demo(tmp_path, name="own", models=["oss"], pace=0) as own,
    ):
        config = backend_toml(service).replace('"vllm"', '"openai"') + backend_toml(own)
        with Gateway(tmp_path, config, environ=WAYS[way]) as gateway:
            for model, demo, left in (("gpt", service, [SAID, CALL]), ("oss", own, None)):
                given = {"model": model, "input": [SAID, PLAIN, CALL]}
                assert ask(gateway, "/v1/responses", body=json.dumps(given).encode()).status == 200
                assert json.loads(demo.last()["body"]) == given | ({"input": left} if left else {})
