"""A backend with thousands of models: the dashboard stays small, and the model that is used has
its series."""

import json
import urllib.request

import pytest

from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

MODELS = [f"model-{n:04}" for n in range(5000)]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    directory = tmp_path_factory.mktemp("many")
    with (
        Demo(directory, name="zoo", models=MODELS, pace=0) as zoo,
        Gateway(directory, backend_toml(zoo)) as gateway,
    ):
        until(lambda: gateway.scrape().value("nexus_models_available") == len(MODELS))
        yield gateway


def test_the_dashboard_stays_small(gateway):
    def page() -> str | None:
        """The page; None if the worker that made it does not know all models yet."""
        with urllib.request.urlopen(f"{gateway.base}/", timeout=10) as answer:
            page: str = answer.read().decode()
        return page if "and 4\u2009900 more" in page else None

    whole = until(page)
    assert "model-0099" in whole
    assert len(whole.encode()) < 100_000
    tick, history = (gateway.run_dir / "live.json").read_bytes().split(b"\n")
    assert len(tick) < 30_000
    assert len(history) < 60_000


def test_the_last_model_of_the_list_has_its_series_once_it_is_used(gateway):
    last = MODELS[-1]
    label = last.replace("-", "_")
    body = json.dumps({"model": last, "messages": [{"role": "user", "content": "Hi"}]}).encode()

    def ask() -> bool:
        request = urllib.request.Request(
            f"{gateway.base}/v1/chat/completions", body, {"content-type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=10).close()
        return gateway.settled().total("nexus_requests_total", model=label) > 0

    assert (label, last) not in gateway.scrape().series("nexus_model_info", "model", "name")
    until(ask)
    scrape = gateway.scrape()
    assert (label, last) in scrape.series("nexus_model_info", "model", "name")
    assert scrape.value("nexus_labels", kind="model") == 251
    assert scrape.value("nexus_labels_overflowed", kind="model") == 0
