"""The backends, attempts at them, and the queue."""

from __future__ import annotations

from panels import BACKEND, HOST, MODEL, Dashboard, Panel, percentiles, quantile, rate

FLEET = Dashboard(
    uid="nexus-fleet",
    title="Nexus / Fleet and health",
    description="The backends as probes and requests see them, retries, circuits, the queue.",
    runbook="backends.md",
    rows={
        "Fleet": [
            Panel(
                title="Backends", kind="table",
                description="Label value and real name, kind, address, zone and tier of each.",
                queries=[(f"max by (backend, name, type, url, zone, tier) (nexus_backend_info{{{BACKEND}}})", "")],
            ),
            Panel(
                title="Models", kind="table",
                description="Label value and real name of each model that has one, aliases included.",
                queries=[(f"max by (model, name) (nexus_model_info{{{MODEL}}})", "")],
            ),
            Panel(
                title="Healthy", kind="state-timeline", runbook="backends.md#nexusbackenddown",
                description="What the probes say of each backend, as the host sees it that sees worst.",
                queries=[(f"min by (backend) (nexus_backend_up{{{BACKEND}}})", "{{backend}}")],
                names={"0": ("down", "red"), "1": ("up", "green")},
            ),
            Panel(
                title="Circuit", kind="state-timeline", runbook="backends.md#nexuscircuitopen",
                description="What requests saw of each backend, as the host sees it that sees worst.",
                queries=[(f"max by (backend) (nexus_backend_circuit_state{{{BACKEND}}})", "{{backend}}")],
                names={"0": ("closed", "green"), "1": ("half open", "yellow"), "2": ("open", "red")},
            ),
            Panel(
                title="Drained", kind="state-timeline",
                description="Where an operator has a backend get no new requests.",
                queries=[(f"max by (backend) (nexus_backend_draining{{{BACKEND}}})", "{{backend}}")],
                names={"0": ("in use", "green"), "1": ("drained", "blue")},
            ),
            Panel(
                title="Backends for each model", width=12, runbook="backends.md#nexusmodelwithoutbackend",
                description="Healthy ones that are not drained, as the host sees it that sees fewest.",
                queries=[(f"min by (model) (nexus_model_backends{{{MODEL}}})", "{{model}}")],
            ),
        ],
        "Probes": [
            Panel(
                title="Probe latency, p95", unit="s",
                description="Of probes that got an answer.",
                queries=[(quantile(0.95, "nexus_backend_latency_seconds", BACKEND, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Probes answered", unit="cps",
                description="A second, by backend; one that falls to nothing gets no answer.",
                queries=[(rate("nexus_backend_latency_seconds_count", BACKEND, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Age of the fleet", unit="s", runbook="processes.md#nexushealthprocessstale",
                description="Since the last round of probes ended.",
                queries=[(f"time() - nexus_fleet_last_update_timestamp_seconds{{{HOST}}}", "{{instance}}")],
            ),
        ],
        "Attempts": [
            Panel(
                title="Attempts by outcome", unit="cps", stacked=True, runbook="backends.md#nexusbackendfails",
                description="Attempts at backends, several for a request that was retried.",
                queries=[(rate("nexus_upstream_attempts_total", BACKEND, "outcome"), "{{outcome}}")],
            ),
            Panel(
                title="Retries", unit="cps", stacked=True,
                description="Attempts that failed and were followed by another, by the backend that failed.",
                queries=[(rate("nexus_retries_total", BACKEND, "backend", "error_type"), "{{backend}} {{error_type}}")],
            ),
            Panel(
                title="Retries denied", unit="cps",
                description="Attempts that would have been followed by another, had the host's budget allowed it.",
                queries=[(rate("nexus_retries_denied_total", BACKEND, "backend"), "{{backend}}")],
            ),
            Panel(
                title="In flight by backend", stacked=True,
                description="Requests queued for or in flight to each backend, over all hosts.",
                queries=[(f"sum by (backend) (nexus_pending_requests{{{BACKEND}}})", "{{backend}}")],
            ),
            Panel(
                title="Circuits opened", unit="cps", runbook="backends.md#nexuscircuitopen",
                description="Times that a backend was taken out because requests to it failed, a second.",
                queries=[(rate("nexus_circuit_opened_total", BACKEND, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Unsolicited responses", unit="cps",
                description="Connections closed because a backend sent bytes to which no request was open, a second.",
                queries=[(f"{rate('nexus_backend_unsolicited_responses_total', BACKEND)} or vector(0)", "all backends")],
            ),
            Panel(
                title="Backends passed over", unit="cps",
                description="Backends that have the model of a request and were not considered for it, by the reason.",
                queries=[(rate("nexus_routing_exclusions_total", HOST, "reason"), "{{reason}}")],
            ),
            Panel(
                title="Choosing a backend", unit="s",
                description="Time that it takes, or finding that there is none.",
                queries=percentiles("nexus_routing_decision_seconds", HOST),
            ),
        ],
        "Queue": [
            Panel(
                title="Waiting", stacked=True, runbook="backends.md#nexusqueuesaturated",
                description="Requests that wait for room at a backend, by host.",
                queries=[(f"sum by (instance) (nexus_queue_depth{{{HOST}}})", "{{instance}}")],
            ),
            Panel(
                title="How long they wait", unit="s",
                description="However the wait ended.",
                queries=percentiles("nexus_queue_wait_seconds", HOST),
            ),
            Panel(
                title="Found no room", unit="reqps", runbook="backends.md#nexusqueuesaturated",
                description="full: as many wait as may; late: the longest wait was over.",
                queries=[(rate("nexus_queue_rejections_total", HOST, "reason"), "{{reason}}")],
            ),
        ],
    },
)  # fmt: skip
