"""Each problem follows from its facts, and a gateway that is well has none."""

import time

import pytest
from msgspec.structs import replace

from nexus.admin.responses import BackendState
from nexus.fleet.problems import Problem, ProblemList, read_problems, write_problems
from nexus.health.problems import Facts, find_problems

WELL = BackendState(
    id="a_1",
    name="a-1",
    url="http://127.0.0.1:1",
    type="vllm",
    zone="restricted",
    tier=1,
    priority=50,
    status="healthy",
    since=100.0,
    draining=False,
    origin="file",
    circuit="closed",
    in_flight=0,
    capacity=None,
    latency_ms=1.0,
    models=["m"],
    dialects=["openai"],
    error=None,
)


def backend(**changed) -> BackendState:
    return replace(WELL, **changed)


def facts(**changed) -> Facts:
    usual = {
        "backends": [WELL],
        "troubles": {},
        "uptime_s": 60.0,
        "workers": 2,
        "workers_configured": 2,
        "workers_silent": 0,
        "fleet_age_s": 1.0,
        "fleet_age_limit_s": 15.0,
        "reload_problems": (),
        "run_directory_usable": True,
        "imbalance": 0.0,
        "write_errors": 0,
        "damaged_files": 0,
        "labels_over": 0,
    }
    return Facts(**(usual | changed))


UNRESOLVED = "no name server responds for a.example; check the DNS"
UNHEALTHY = backend(status="unhealthy", error="nothing listens there; start the server")
TABLE = [
    ({"run_directory_usable": False}, "run_directory_unusable", "gone or full"),
    ({"workers": 1}, "workers_missing", "1 of 2 workers run"),
    ({"workers": 0}, "workers_missing", "0 of 2 workers run"),
    ({"workers_silent": 1}, "workers_silent", "1 of 2 workers hang"),
    ({"fleet_age_s": 16.0}, "fleet_stale", "round of probes"),
    ({"reload_problems": ("no key x",)}, "reload_refused", "refused: no key x."),
    ({"backends": []}, "no_backends", "There is no backend."),
    ({"backends": [WELL, UNHEALTHY]}, "backend_unhealthy", "unhealthy: nothing listens there."),
    ({"backends": [backend(circuit="open")]}, "backend_circuit_open", "its circuit is open"),
    ({"backends": [backend(circuit="half_open")]}, "backend_circuit_open", "half open"),
    ({"troubles": {"a_1": "hangs"}}, "backend_hangs", "served nothing"),
    ({"troubles": {"a_1": "refuses_all"}}, "backend_refuses_all", "with a 4xx"),
    ({"backends": [backend(models=[], error="404; x")]}, "backend_without_models", "models: 404."),
    ({"backends": [backend(error=UNRESOLVED)]}, "name_server_down", "for 1 of 1 backends"),
    ({"backends": [backend(draining=True)]}, "no_usable_backend", "No backend takes requests."),
    ({"imbalance": -2.0}, "metrics_imbalance", "is -2."),
    ({"write_errors": 3}, "metrics_write_errors", "3 series"),
    ({"damaged_files": 1}, "metrics_damaged_files", "1 metrics files"),
    ({"labels_over": 4}, "label_overflow", "4 names"),
    ({"ledger_failing": True}, "ledger_not_written", "cannot be written"),
    ({"nearly_spent": ["month of key a"]}, "budget_nearly_spent", "budget month of key a is"),
]


def test_nothing_is_wrong():
    assert find_problems(facts()) == []
    # A gateway that has not started yet, and a fleet that is not probed.
    assert find_problems(facts(workers=0, workers_configured=0)) == []
    assert find_problems(facts(workers=1, uptime_s=5.0)) == []
    assert find_problems(facts(backends=[backend(status="unknown")])) == []
    assert find_problems(facts(fleet_age_s=1e9, fleet_age_limit_s=None)) == []


@pytest.mark.parametrize(("changed", "code", "text"), TABLE, ids=lambda one: str(one)[:40])
def test_each_problem(changed, code, text):
    (found,) = find_problems(facts(**changed))
    assert found.code == code
    assert text in found.text
    assert found.hint
    assert found.text.endswith(".")


def test_the_worst_of_a_backend_is_reported_and_an_idle_fleet_besides():
    worst = backend(status="unhealthy", circuit="open", error=UNRESOLVED)
    found = find_problems(facts(backends=[worst], troubles={"a_1": "hangs"}))
    codes = [one.code for one in found]
    assert codes == ["name_server_down", "backend_unhealthy", "no_usable_backend"]
    assert (found[1].subject, found[1].since, found[1].hint) == ("a-1", 100.0, "check the DNS")


@pytest.mark.parametrize(
    ("alive", "age_s", "code"),
    [(True, 0, None), (False, 0, "health_process_down"), (True, 60, "problems_stale")],
)
def test_another_process_adds_what_the_health_process_cannot_say(tmp_path, alive, age_s, code):
    (known,) = find_problems(facts(workers=1))
    written = ProblemList(checked_at=time.time() - age_s, problems=[known])
    write_problems(tmp_path, written)
    found: list[Problem] = read_problems(tmp_path, health_process_alive=alive).problems
    assert [one.code for one in found] == [*([code] if code else []), "workers_missing"]


def test_no_list_yet(tmp_path):
    (found,) = read_problems(tmp_path, health_process_alive=False).problems
    assert found.code == "health_process_down"
