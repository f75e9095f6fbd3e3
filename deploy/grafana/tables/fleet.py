"""The backends, attempts at them, and the queue."""

from __future__ import annotations

from panels import BACKEND, HOST, MODEL, Dashboard, Panel, percentiles, quantile, rare, rate

FLEET = Dashboard(
    uid="nexus-fleet",
    title="Nexus / Fleet and health",
    description="Backends by probes and by requests, retries, circuits, the queue.",
    runbook="backends.md",
    rows={
        "Fleet": [
            Panel(
                title="Backends", kind="table",
                description="Label value, real name, kind, address, zone, and tier of each backend.",
                queries=[(f"max by (backend, name, type, url, zone, tier) (nexus_backend_info{{{BACKEND}}})", "")],
            ),
            Panel(
                title="Models", kind="table",
                description="Label value and real name of each model with a label value, aliases included.",
                queries=[(f"max by (model, name) (nexus_model_info{{{MODEL}}})", "")],
            ),
            Panel(
                title="Healthy", kind="state-timeline", runbook="backends.md#nexusbackenddown",
                description="Result of the health probes; the worst of all hosts.",
                queries=[(f"min by (backend) (nexus_backend_up{{{BACKEND}}})", "{{backend}}")],
                names={"0": ("down", "red"), "1": ("up", "green")},
            ),
            Panel(
                title="Circuit", kind="state-timeline", runbook="backends.md#nexuscircuitopen",
                description="State of each circuit; the worst of all hosts.",
                queries=[(f"max by (backend) (nexus_backend_circuit_state{{{BACKEND}}})", "{{backend}}")],
                names={"0": ("closed", "green"), "1": ("half open", "yellow"), "2": ("open", "red")},
            ),
            Panel(
                title="Drained", kind="state-timeline",
                description="Backends that an operator has drained.",
                queries=[(f"max by (backend) (nexus_backend_draining{{{BACKEND}}})", "{{backend}}")],
                names={"0": ("in use", "green"), "1": ("drained", "blue")},
            ),
            Panel(
                title="Backends for each model", width=12, runbook="backends.md#nexusmodelwithoutbackend",
                description="Healthy backends that are not drained; the lowest count of any host.",
                queries=[(f"min by (model) (nexus_model_backends{{{MODEL}}})", "{{model}}")],
            ),
        ],
        "Probes": [
            Panel(
                title="Probe latency, p95", unit="s",
                description="Probes with a response.",
                queries=[(quantile(0.95, "nexus_backend_latency_seconds", BACKEND, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Probes with a response", unit="cps",
                description="Per second, by backend. A backend whose rate falls to 0 does not respond.",
                queries=[(rate("nexus_backend_latency_seconds_count", BACKEND, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Age of the fleet", unit="s", runbook="processes.md#nexushealthprocessstale",
                description="Time since the last round of probes ended.",
                queries=[(f"time() - nexus_fleet_last_update_timestamp_seconds{{{HOST}}}", "{{instance}}")],
            ),
        ],
        "Attempts": [
            Panel(
                title="Attempts by outcome", unit="cps", stacked=True, runbook="backends.md#nexusbackendfails",
                description="Attempts at backends; a retried request has several.",
                queries=[(rate("nexus_upstream_attempts_total", BACKEND, "outcome"), "{{outcome}}")],
            ),
            Panel(
                title="Retries", unit="cps", stacked=True,
                description="Failed attempts that were followed by another, by failed backend.",
                queries=[(rate("nexus_retries_total", BACKEND, "backend", "error_type"), "{{backend}} {{error_type}}")],
            ),
            Panel(
                title="Retries denied", unit="cps",
                description="Failed attempts that were not followed by another because the host's retry budget was used up.",
                queries=[(rate("nexus_retries_denied_total", BACKEND, "backend"), "{{backend}}")],
            ),
            Panel(
                title="In flight by backend", stacked=True,
                description="Requests that wait for each backend or are in flight there, all hosts.",
                queries=[(f"sum by (backend) (nexus_pending_requests{{{BACKEND}}})", "{{backend}}")],
            ),
            Panel(
                title="Circuits opened", unit="cps", runbook="backends.md#nexuscircuitopen",
                description="Circuits opened per second, because requests to a backend failed.",
                queries=[(rate("nexus_circuit_opened_total", BACKEND, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Unsolicited responses", unit="cps",
                description="Connections closed per second because a backend sent bytes without a request.",
                queries=[(rare("nexus_backend_unsolicited_responses_total", BACKEND), "all backends")],
            ),
            Panel(
                title="Excluded backends", unit="cps",
                description="Backends with the requested model that were not considered, by reason.",
                queries=[(rate("nexus_routing_exclusions_total", HOST, "reason"), "{{reason}}")],
            ),
            Panel(
                title="Choosing a backend", unit="s",
                description="Time to choose a backend, or to find that none can serve.",
                queries=percentiles("nexus_routing_decision_seconds", HOST),
            ),
        ],
        "Queue": [
            Panel(
                title="Waiting", stacked=True, runbook="backends.md#nexusqueuesaturated",
                description="Requests that wait for capacity at a backend, by host.",
                queries=[(f"sum by (instance) (nexus_queue_depth{{{HOST}}})", "{{instance}}")],
            ),
            Panel(
                title="Time in the queue", unit="s",
                description="All waits, whether or not a backend then served the request.",
                queries=percentiles("nexus_queue_wait_seconds", HOST),
            ),
            Panel(
                title="Refused by the queue", unit="reqps", runbook="backends.md#nexusqueuesaturated",
                description="full: the queue was full. late: the request waited too long.",
                queries=[(rate("nexus_queue_rejections_total", HOST, "reason"), "{{reason}}")],
            ),
        ],
        "APIs": [
            Panel(
                title="Requests by endpoint", unit="reqps",
                description="Requests that a backend got, by endpoint: in the client's API or translated.",
                queries=[(rate("nexus_dialect_requests_total", HOST, "endpoint", "mode"), "{{endpoint}} {{mode}}")],
            ),
            Panel(
                title="Translated requests", unit="reqps",
                description="Requests whose backend speaks another API than the client.",
                queries=[(rare("nexus_translated_requests_total", BACKEND), "all backends")],
            ),
            Panel(
                title="Stored responses", unit="reqps",
                description="Requests that name a response or a conversation which a backend stores.",
                queries=[(rare("nexus_sticky_total", HOST), "all results")],
            ),
            Panel(
                title="Ids of stored responses",
                description="Places in the table that finds the backend of a response; the oldest id goes when none is free.",
                queries=[(f"sum by (instance, state) (nexus_sticky_ids{{{HOST}}})", "{{instance}} {{state}}")],
            ),
            Panel(
                title="Images, seconds, and characters", unit="cps",
                description="What endpoints served beside tokens, per second.",
                queries=[(rare("nexus_units_total", HOST), "all endpoints")],
            ),
            Panel(
                title="Uploaded bytes", unit="Bps",
                description="Forms that clients uploaded, such as audio.",
                queries=[(rare("nexus_upload_bytes_sum", HOST), "all hosts")],
            ),
            Panel(
                title="Uploads in files", unit="bytes",
                description="Bytes of uploads that are kept in files now.",
                queries=[(f"sum by (instance) (nexus_spooled_bytes{{{HOST}}})", "{{instance}}")],
            ),
        ],
    },
)  # fmt: skip
