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
    description="Requests, errors and durations, by model and by backend, and firing alerts.",
    runbook="objectives.md",
    rows={
        "Now": [
            Panel(
                title="Requests", unit="reqps", kind="stat",
                description="Finished requests per second, failures included.",
                queries=[(rate(REQUESTS, BOTH), "")],
            ),
            Panel(
                title="Failed, last hour", unit="percentunit", kind="stat", runbook="objectives.md#nexusavailabilityburnsfast",
                description="Share of failures among the requests that could be served, all hosts. The budget is 0.5 %.",
                queries=[(f"max({FAILED}:ratio_rate1h)", "")],
                limits=((None, "green"), (0.005, "yellow"), (0.03, "red")),
            ),
            Panel(
                title="Started late, last hour", unit="percentunit", kind="stat", runbook="objectives.md#nexusfirsttokenburnsfast",
                description="Share of streams whose first token took more than 2.5 s, all hosts. The budget is 5 %.",
                queries=[(f"max({SLOW}:ratio_rate1h)", "")],
                limits=((None, "green"), (0.05, "yellow"), (0.3, "red")),
            ),
            Panel(
                title="Backends healthy", kind="stat", runbook="backends.md#nexusbackenddown",
                description="The lowest count of any host.",
                queries=[(f"min(nexus_backends_healthy{{{HOST}}})", "healthy"), (f"max(nexus_backends_total{{{HOST}}})", "registered")],
            ),
            Panel(
                title="Models available", kind="stat",
                description="Distinct models on healthy backends; the lowest count of any host.",
                queries=[(f"min(nexus_models_available{{{HOST}}})", "")],
            ),
            Panel(
                title="In flight", kind="stat",
                description="Requests that wait for a backend or are in flight.",
                queries=[(f"sum(nexus_pending_requests{{{BACKEND}}})", "")],
            ),
        ],
        "Alerts and budgets": [
            Panel(
                title="Alerts", kind="table",
                description="Alerts that are pending or firing. Each has a section in the runbooks.",
                queries=[('ALERTS{alertname=~"Nexus.+"}', "")],
            ),
            Panel(
                title="Failed requests by window", unit="percentunit", width=12, runbook="objectives.md",
                description="Share of failures over windows of several lengths, all hosts. Each alert uses two of them.",
                queries=[(f"{FAILED}:ratio_rate{window}", f"over {window}") for window in WINDOWS],
            ),
        ],
        "By model": [
            Panel(
                title="Requests by model", unit="reqps", stacked=True,
                description="By the model of the last attempt; unknown: a model that no backend has.",
                queries=[(rate(REQUESTS, BOTH, "model"), "{{model}}")],
            ),
            Panel(
                title="Failures by model", unit="percentunit", runbook="objectives.md#nexusavailabilityburnsfast",
                description="Share of failures among the model's requests that could be served, all hosts.",
                queries=[('job_model:nexus_requests_failed:ratio_rate5m{model=~"$model"}', "{{model}}")],
            ),
            Panel(
                title="Duration by model, p95", unit="s",
                description="From a request's headers to the last byte of its response, streams included.",
                queries=[(quantile(0.95, DURATION, BOTH, "model"), "{{model}}")],
            ),
            Panel(
                title="Tokens by model", unit="cps", stacked=True,
                description="Tokens per second, of requests with known usage.",
                queries=[(rate("nexus_tokens_total_sum", BOTH, "model", "type"), "{{model}} {{type}}")],
            ),
            Panel(
                title="Cached and reasoning tokens", unit="cps",
                description="What backends also report: cached tokens of prompts, reasoning tokens of completions.",
                queries=[(rate("nexus_token_details_total", BOTH, "model", "type"), "{{model}} {{type}}")],
            ),
            Panel(
                title="Fallbacks", unit="reqps", runbook="backends.md#nexusfallbacksharehigh",
                description="Requests that another model than the requested one served.",
                queries=[(rate("nexus_fallbacks_total", HOST, "from_model", "to_model"), "{{from_model}} → {{to_model}}")],
            ),
        ],
        "By backend": [
            Panel(
                title="Cached share of prompts", unit="percentunit",
                description="Share of prompt tokens that each backend reports as cached.",
                queries=[(
                    f"sum by (backend) (rate(nexus_token_details_total{{{BOTH}, type=\"cached\"}}[$__rate_interval]))"
                    f" / sum by (backend) (rate(nexus_tokens_total_sum{{{BOTH}, type=\"prompt\"}}[$__rate_interval]))",
                    "{{backend}}",
                )],
            ),
            Panel(
                title="Affinity", unit="reqps", stacked=True,
                description="Requests with a session, by its source and by whether its home served them.",
                queries=[(rate("nexus_affinity_total", HOST, "source", "result"), "{{source}} {{result}}")],
            ),
            Panel(
                title="Requests by backend", unit="reqps", stacked=True,
                description="By the backend of the last attempt; none: no attempt.",
                queries=[(rate(REQUESTS, BOTH, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Failed attempts by backend", unit="percentunit", runbook="backends.md#nexusbackendfails",
                description="Share of attempts that failed because of the backend, all hosts. Retries hide many of them from clients.",
                queries=[('job_backend:nexus_upstream_attempts_failed:ratio_rate5m{backend=~"$backend"}', "{{backend}}")],
            ),
            Panel(
                title="Duration by backend, p95", unit="s",
                description="From a request's headers to the last byte of its response, streams included.",
                queries=[(quantile(0.95, DURATION, BOTH, "backend"), "{{backend}}")],
            ),
        ],
        "Responses": [
            Panel(
                title="By status", unit="reqps", stacked=True,
                description="Status of each request. 499: the client disconnected. 502 and 504 include streams that broke.",
                queries=[(rate(REQUESTS, BOTH, "status"), "{{status}}")],
            ),
            Panel(
                title="Errors by kind", unit="reqps", stacked=True, runbook="objectives.md",
                description="Failed requests, clients' own errors included.",
                queries=[(rate("nexus_errors_total", MODEL, "error_type"), "{{error_type}}")],
            ),
            Panel(
                title="Duration", unit="s",
                description="Of all requests, streams included.",
                queries=percentiles(DURATION, BOTH),
            ),
            Panel(
                title="Requests by endpoint", unit="reqps", stacked=True,
                description="Requests per second, counted when their headers arrive.",
                queries=[(rate("nexus_requests_started_total", HOST, "endpoint"), "{{endpoint}}")],
            ),
            Panel(
                title="Unknown models", unit="reqps",
                description="Requests for a model that is neither at a backend nor in the configuration.",
                queries=[(rate("nexus_unknown_models_total", HOST), "unknown")],
            ),
            Panel(
                title="Refused outside the endpoints", unit="reqps",
                description="Requests outside the proxied endpoints: a wrong path or method, or invalid HTTP.",
                queries=[
                    (rate("nexus_http_rejected_total", HOST, "reason"), "{{reason}}"),
                    (rate("nexus_http_preflights_total", HOST), "preflights"),
                ],
            ),
        ],
    },
)  # fmt: skip
