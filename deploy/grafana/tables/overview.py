"""Requests, errors and durations: what clients feel."""

from __future__ import annotations

from panels import (
    BACKEND,
    BOTH,
    HOST,
    MODEL,
    WINDOWS,
    Dashboard,
    Panel,
    percentiles,
    quantile,
    rate,
)

REQUESTS = "nexus_requests_total"
DURATION = "nexus_request_duration_seconds"
FAILED = "job:nexus_requests_failed"
SLOW = "job:nexus_first_tokens_slow"

OVERVIEW = Dashboard(
    uid="nexus-overview",
    title="Nexus / Overview",
    description="Requests, errors and durations, by model and by backend, and what fires.",
    runbook="objectives.md",
    rows={
        "Now": [
            Panel(
                title="Requests", unit="reqps", kind="stat",
                description="Requests that ended, a second, whatever their end.",
                queries=[(rate(REQUESTS, BOTH), "")],
            ),
            Panel(
                title="Fail, last hour", unit="percentunit", kind="stat", runbook="objectives.md#nexusavailabilityburnsfast",
                description="Share of the requests that could be served and were not, of all hosts. 0.5 % is the budget.",
                queries=[(f"max({FAILED}:ratio_rate1h)", "")],
                limits=((None, "green"), (0.005, "yellow"), (0.03, "red")),
            ),
            Panel(
                title="Begin late, last hour", unit="percentunit", kind="stat", runbook="objectives.md#nexusfirsttokenburnsfast",
                description="Share of the streams whose first token took more than 2.5 s, of all hosts. 5 % is the budget.",
                queries=[(f"max({SLOW}:ratio_rate1h)", "")],
                limits=((None, "green"), (0.05, "yellow"), (0.3, "red")),
            ),
            Panel(
                title="Backends healthy", kind="stat", runbook="backends.md#nexusbackenddown",
                description="As the host sees it that sees fewest.",
                queries=[(f"min(nexus_backends_healthy{{{HOST}}})", "healthy"), (f"max(nexus_backends_total{{{HOST}}})", "registered")],
            ),
            Panel(
                title="Models available", kind="stat",
                description="Distinct models on healthy backends, as the host sees it that sees fewest.",
                queries=[(f"min(nexus_models_available{{{HOST}}})", "")],
            ),
            Panel(
                title="In flight", kind="stat",
                description="Requests queued for or in flight to backends.",
                queries=[(f"sum(nexus_pending_requests{{{BACKEND}}})", "")],
            ),
        ],
        "Alerts and budgets": [
            Panel(
                title="Alerts", kind="table",
                description="What is pending or fires now; each has a page among the runbooks.",
                queries=[('ALERTS{alertname=~"Nexus.+"}', "")],
            ),
            Panel(
                title="Requests that fail, by window", unit="percentunit", width=12, runbook="objectives.md",
                description="Share over windows of several lengths, all hosts; alerts look at two of them at a time.",
                queries=[(f"{FAILED}:ratio_rate{window}", f"over {window}") for window in WINDOWS],
            ),
        ],
        "By model": [
            Panel(
                title="Requests by model", unit="reqps", stacked=True,
                description="By the model last asked upstream; unknown is one that nobody has.",
                queries=[(rate(REQUESTS, BOTH, "model"), "{{model}}")],
            ),
            Panel(
                title="Fail by model", unit="percentunit", runbook="objectives.md#nexusavailabilityburnsfast",
                description="Share of the model's requests that could be served and were not, all hosts.",
                queries=[('job_model:nexus_requests_failed:ratio_rate5m{model=~"$model"}', "{{model}}")],
            ),
            Panel(
                title="Duration by model, p95", unit="s",
                description="From a request's head to the last byte of its answer, streams included.",
                queries=[(quantile(0.95, DURATION, BOTH, "model"), "{{model}}")],
            ),
            Panel(
                title="Tokens by model", unit="cps", stacked=True,
                description="Tokens a second of requests whose usage is known.",
                queries=[(rate("nexus_tokens_total_sum", BOTH, "model", "type"), "{{model}} {{type}}")],
            ),
            Panel(
                title="Cached and reasoning tokens", unit="cps",
                description="What backends tell of in addition: cached tokens of prompts, reasoning ones of completions.",
                queries=[(rate("nexus_token_details_total", BOTH, "model", "type"), "{{model}} {{type}}")],
            ),
            Panel(
                title="Fallbacks", unit="reqps", runbook="backends.md#nexusfallbacksharehigh",
                description="Requests that another model than the asked one served.",
                queries=[(rate("nexus_fallbacks_total", HOST, "from_model", "to_model"), "{{from_model}} → {{to_model}}")],
            ),
        ],
        "By backend": [
            Panel(
                title="Prompts found in caches", unit="percentunit",
                description="Share of prompt tokens that each backend had cached, as it reports them.",
                queries=[(
                    f"sum by (backend) (rate(nexus_token_details_total{{{BOTH}, type=\"cached\"}}[$__rate_interval]))"
                    f" / sum by (backend) (rate(nexus_tokens_total_sum{{{BOTH}, type=\"prompt\"}}[$__rate_interval]))",
                    "{{backend}}",
                )],
            ),
            Panel(
                title="Affinity", unit="reqps", stacked=True,
                description="Requests with a session, by how it was known, and whether its home served them.",
                queries=[(rate("nexus_affinity_total", HOST, "source", "result"), "{{source}} {{result}}")],
            ),
            Panel(
                title="Requests by backend", unit="reqps", stacked=True,
                description="By the backend last tried; none where none was.",
                queries=[(rate(REQUESTS, BOTH, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Attempts that fail, by backend", unit="percentunit", runbook="backends.md#nexusbackendfails",
                description="Share of the attempts that speak against the backend, all hosts; retries hide many from clients.",
                queries=[('job_backend:nexus_upstream_attempts_failed:ratio_rate5m{backend=~"$backend"}', "{{backend}}")],
            ),
            Panel(
                title="Duration by backend, p95", unit="s",
                description="From a request's head to the last byte of its answer, streams included.",
                queries=[(quantile(0.95, DURATION, BOTH, "backend"), "{{backend}}")],
            ),
        ],
        "What comes back": [
            Panel(
                title="By status", unit="reqps", stacked=True,
                description="What clients got; 499 went away before the end, 502 and 504 also are streams that broke.",
                queries=[(rate(REQUESTS, BOTH, "status"), "{{status}}")],
            ),
            Panel(
                title="Errors by kind", unit="reqps", stacked=True, runbook="objectives.md",
                description="Requests that ended in failure, clients' own errors included.",
                queries=[(rate("nexus_errors_total", MODEL, "error_type"), "{{error_type}}")],
            ),
            Panel(
                title="Duration", unit="s",
                description="Of all requests, streams included.",
                queries=percentiles(DURATION, BOTH),
            ),
            Panel(
                title="Requests by endpoint", unit="reqps", stacked=True,
                description="Requests whose head was read, a second.",
                queries=[(rate("nexus_requests_started_total", HOST, "endpoint"), "{{endpoint}}")],
            ),
            Panel(
                title="Unknown models", unit="reqps",
                description="Requests for a model that no backend and no configuration knows.",
                queries=[(rate("nexus_unknown_models_total", HOST), "unknown")],
            ),
            Panel(
                title="Refused beside the endpoints", unit="reqps",
                description="Requests outside the proxied endpoints: a wrong path or method, a head that is no HTTP.",
                queries=[
                    (rate("nexus_http_rejected_total", HOST, "reason"), "{{reason}}"),
                    (rate("nexus_http_preflights_total", HOST), "preflights"),
                ],
            ),
        ],
    },
)  # fmt: skip
