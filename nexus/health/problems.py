"""What is wrong with the gateway: a pure function from facts to a list of problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nexus.admin.responses import BackendState
from nexus.fleet.problems import Problem, problem
from nexus.fleet.windows import Trouble
from nexus.http.connect_errors import NO_NAME_SERVER

_TROUBLES: Mapping[Trouble, str] = {
    "hangs": "served nothing in ten minutes: clients left, or time limits ended",
    "refuses_all": "refused every request in ten minutes with a 4xx",
}


_STARTUP_S = 10.0
"""Workers that have not started within this time are missing."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the health process knows of the gateway at one moment.

    Attributes:
        troubles: Label value of a backend → why it has served nothing lately.
        uptime_s: Seconds since the gateway started.
        workers: Workers that accept requests.
        workers_configured: Workers at the gateway's start; 0 if it has not started yet.
        workers_silent: Workers whose event loop hangs.
        fleet_age_s: Seconds since the last round of probes ended; None before the first.
        fleet_age_limit_s: Age from which the fleet is stale; None if nothing is probed.
        reload_problems: Why the last reload was refused; empty if it was not.
        imbalance: Value of `nexus_accounting_imbalance`.
        write_errors: Series that found no space in the run directory.
        damaged_files: Damaged metrics files that were renamed.
        labels_over: Names that have no label value of their own.
        nearly_spent: Budgets that have reached the share that warns, each with its subject.
        ledger_failing: The last attempt to write the ledger failed.
    """

    backends: Sequence[BackendState]
    troubles: Mapping[str, Trouble]
    uptime_s: float
    workers: int
    workers_configured: int
    workers_silent: int
    fleet_age_s: float | None
    fleet_age_limit_s: float | None
    reload_problems: Sequence[str]
    run_directory_usable: bool
    imbalance: float
    write_errors: int
    damaged_files: int
    labels_over: int
    nearly_spent: Sequence[str] = ()
    ledger_failing: bool = False


def find_problems(facts: Facts) -> list[Problem]:
    """Everything that is wrong, the gateway's own processes first."""
    return [
        *_process_problems(facts),
        *_backend_problems(facts),
        *_metrics_problems(facts),
        *_money_problems(facts),
    ]


def _process_problems(facts: Facts) -> Iterator[Problem]:
    if not facts.run_directory_usable:
        yield problem(
            "run_directory_unusable",
            "run directory",
            "The run directory is gone or full",
            "make space, or restart the gateway",
        )
    if facts.workers < facts.workers_configured and facts.uptime_s > _STARTUP_S:
        yield problem(
            "workers_missing",
            "workers",
            f"{facts.workers} of {facts.workers_configured} workers run",
            "the gateway's log says why the others ended",
        )
    if facts.workers_silent:
        yield problem(
            "workers_silent",
            "workers",
            f"{facts.workers_silent} of {facts.workers} workers hang",
            "`/readyz?verbose` shows their pids; a worker that never moves again must be killed",
        )
    age_s, limit_s = facts.fleet_age_s, facts.fleet_age_limit_s
    if age_s is not None and limit_s is not None and age_s > limit_s:
        yield problem(
            "fleet_stale",
            "health process",
            "The health process has not finished a round of probes in time",
            "the health process's log says what holds it up",
        )
    if facts.reload_problems:
        yield problem(
            "reload_refused",
            "reload",
            "The last reload was refused",
            "correct the file (`nexus config check` lists every fault), then run `nexus reload`",
            detail=facts.reload_problems[0],
        )


def _backend_problems(facts: Facts) -> Iterator[Problem]:
    backends = facts.backends
    if not backends:
        yield problem(
            "no_backends",
            "fleet",
            "There is no backend",
            "add one with `nexus backends add URL`, or in the configuration",
        )
        return
    if unresolved := [b.name for b in backends if NO_NAME_SERVER in (b.error or "")]:
        yield problem(
            "name_server_down",
            "name server",
            f"No name server responds for {len(unresolved)} of {len(backends)} backends",
            "check the DNS of this host (`/etc/resolv.conf`)",
        )
    for backend in backends:
        if found := _backend_problem(backend, facts.troubles.get(backend.id)):
            yield found
    if all(backend.draining or backend.status == "unhealthy" for backend in backends):
        yield problem(
            "no_usable_backend",
            "fleet",
            "No backend takes requests",
            "`nexus backends list` shows which are unhealthy or drained",
        )


def _backend_problem(backend: BackendState, trouble: Trouble | None) -> Problem | None:
    """The most important problem of one backend."""
    name, history = backend.name, f"`nexus history --backend {backend.name}` shows the requests"
    error, _, fix = (backend.error or "").partition("; ")
    look_closer = fix or "`nexus doctor` probes it from here"
    if backend.status == "unhealthy":
        return problem(
            "backend_unhealthy",
            name,
            f"{name} is unhealthy",
            look_closer,
            detail=error or None,
            since=backend.since,
        )
    if backend.circuit != "closed":
        state = backend.circuit.replace("_", " ")
        message = f"Requests to {name} fail: its circuit is {state}"
        return problem("backend_circuit_open", name, message, history)
    if trouble:
        message = f"{name} is healthy by its probes, but {_TROUBLES[trouble]}"
        return problem(f"backend_{trouble}", name, message, history)
    if backend.error and not backend.models:
        # Without health checks, a backend that cannot be reached counts as healthy.
        message = f"{name} has no models"
        return problem("backend_without_models", name, message, look_closer, detail=error)
    return None


def _money_problems(facts: Facts) -> Iterator[Problem]:
    if facts.ledger_failing:
        yield problem(
            "ledger_not_written",
            "ledger",
            "The ledger of costs and usage cannot be written",
            "the health process's log says why; make space in [server] state_dir",
        )
    for name in facts.nearly_spent:
        yield problem(
            "budget_nearly_spent",
            name,
            f"The budget {name} is spent, or nearly so",
            "`nexus budgets` shows what is left, `nexus usage` who spent it",
            warning=True,
        )


def _metrics_problems(facts: Facts) -> Iterator[Problem]:
    if facts.imbalance:
        yield problem(
            "metrics_imbalance",
            "metrics",
            f"The metrics do not add up: nexus_accounting_imbalance is {facts.imbalance:g}",
            "if it stays, report this as a defect, with the log",
        )
    for code, count, message, hint in (
        (
            "metrics_write_errors",
            facts.write_errors,
            "series found no space; one process alone counts them",
            "make space in the run directory, then restart the gateway",
        ),
        (
            "metrics_damaged_files",
            facts.damaged_files,
            "metrics files were damaged and set aside",
            "the log names them; restart the gateway to count from zero",
        ),
        (
            "label_overflow",
            facts.labels_over,
            "names share the label value `other`",
            "raise [metrics] max_models or max_backends",
        ),
    ):
        if count:
            yield problem(code, "metrics", f"{count} {message}", hint, warning=True)
