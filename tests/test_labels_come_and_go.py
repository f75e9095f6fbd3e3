"""Label values at a gateway that runs: given when a model is used, given back when a name is
gone, never shown twice."""

import json
import os
import signal
import urllib.request

import pytest

from nexus.fleet.snapshot import SnapshotReader
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

pytestmark = pytest.mark.e2e

MODELS = [f"m{n}" for n in range(1, 8)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    directory = tmp_path_factory.mktemp("labels")
    with (
        Demo(directory, name="one", models=MODELS, pace=0) as one,
        Demo(directory, name="two", models=["t"], pace=0) as two,
        Demo(directory, name="zoo", models=["z"], pace=0) as zoo,
        Gateway(
            directory,
            f"{backend_toml(one, two)}\n[metrics]\nmax_models = 6\nmax_backends = 2\n"
            f"retire_after_hours = 0.0003\n",
            interval_s=0.2,
        ) as gateway,
    ):
        gateway.one, gateway.two, gateway.zoo = one, two, zoo
        until(lambda: gateway.scrape().value("nexus_backends_healthy") == 2)
        yield gateway


def ask(gateway, model: str) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}]}).encode()
    request = urllib.request.Request(
        f"{gateway.base}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["choices"]


def admin(gateway, method: str, path: str, **body: object) -> None:
    token = (gateway.run_dir / "admin.token").read_text()
    request = urllib.request.Request(
        f"{gateway.operations}/admin/{path}",
        data=json.dumps(body).encode() if body else None,
        method=method,
        headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


def counted(gateway) -> dict[tuple[str, str], float]:
    return gateway.settled().series("nexus_requests_total", "model", "backend")


def test_a_model_has_its_series_once_it_is_used(fleet):
    assert fleet.scrape().value("nexus_labels", kind="model") == 3
    ask(fleet, "m7")
    assert counted(fleet) == {("other", "one"): 1}
    until(lambda: ("m7", "m7") in fleet.scrape().series("nexus_model_info", "model", "name"))
    ask(fleet, "m7")
    assert counted(fleet) == {("other", "one"): 1, ("m7", "one"): 1}
    assert fleet.scrape().value("nexus_labels_overflowed", kind="model") == 0


def test_what_is_gone_is_counted_as_retired_and_what_returns_starts_anew(fleet):
    until(lambda: ask(fleet, "t") or ("t", "two") in counted(fleet))
    before = counted(fleet)
    total = sum(before.values())
    of_two = sum(value for (_, backend), value in before.items() if backend == "two")
    probes = fleet.scrape().value("nexus_backend_latency_seconds_count", backend="two")
    admin(fleet, "DELETE", "backends/two")
    until(lambda: fleet.scrape().value("nexus_labels", kind="backend") == 1)
    after = counted(fleet)
    assert sum(after.values()) == total
    assert not [key for key in after if "two" in key or "t" in key]
    assert sum(value for (_, backend), value in after.items() if backend == "retired") == of_two
    assert after["retired", "retired"] == before["t", "two"]
    scrape = fleet.scrape()
    assert scrape.series("nexus_backend_latency_seconds_count", "backend").get(("two",)) is None
    assert scrape.value("nexus_backend_latency_seconds_count", backend="retired") >= probes
    assert ("two",) not in scrape.series("nexus_backend_up", "backend")
    stats = fleet.stats()
    assert (
        sum(backend["requests"] for backend in stats["backends"])
        == stats["requests"]["total"]
        == total
    )
    assert sum(model["requests"] for model in stats["models"]) == total

    admin(fleet, "POST", "backends", name="two", url=fleet.two.url, type="vllm")

    def label_of_two() -> str | None:
        named = fleet.scrape().series("nexus_backend_info", "backend", "name")
        return next((label for label, name in named if name == "two"), None)

    label = until(label_of_two)
    assert label.startswith("two_")
    until(lambda: fleet.scrape().value("nexus_backend_up", backend=label) == 1)
    ask(fleet, "t")
    assert sum(value for (_, backend), value in counted(fleet).items() if backend == label) == 1


def test_backends_that_share_other_show_the_worst(fleet):
    admin(fleet, "POST", "backends", name="zoo", url=fleet.zoo.url, type="vllm")
    admin(fleet, "POST", "backends", name="zoo2", url="http://127.0.0.1:9", type="vllm")
    until(lambda: fleet.scrape().value("nexus_backends_total") == 4)
    until(lambda: fleet.scrape().value("nexus_backends_healthy") == 3)
    scrape = fleet.scrape()
    assert scrape.value("nexus_backend_up", backend="other") == 0
    assert scrape.value("nexus_labels_overflowed", kind="backend") == 2
    infos = scrape.series("nexus_backend_info", "backend", "name")
    assert len({label for label, _ in infos}) == len(infos) == 3
    admin(fleet, "DELETE", "backends/zoo2")
    until(lambda: fleet.scrape().value("nexus_backend_up", backend="other") == 1)


def test_the_labels_outlast_the_health_process(fleet):
    before = SnapshotReader(fleet.run_dir).read().labels
    assert before.retired_backends == ("two",)
    pid = fleet.health_pid()
    os.kill(pid, signal.SIGKILL)
    until(lambda: fleet.health_pid() != pid, within_s=20)
    after = SnapshotReader(fleet.run_dir).read().labels
    assert (after.models.items() >= before.models.items(), after.retired_backends) == (
        True,
        ("two",),
    )
