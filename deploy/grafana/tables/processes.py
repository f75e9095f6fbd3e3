"""The gateway's processes and its own metrics."""

from __future__ import annotations

from panels import (
    EVERY,
    HOST,
    YES_IS_GOOD,
    ZERO_IS_GOOD,
    Dashboard,
    Panel,
    mean,
    percentiles,
    quantile,
    rate,
)

PROCESSES = Dashboard(
    uid="nexus-processes",
    title="Nexus / Processes",
    description="Workers and the health process, their resources, and whether the metrics are consistent.",
    runbook="processes.md",
    variables=("instance",),
    rows={
        "Now": [
            Panel(
                title="Workers", kind="stat", runbook="processes.md#nexusnoworkers",
                description="Workers that accept connections, all hosts.",
                queries=[(f"sum(nexus_workers{{{HOST}}})", "")],
                limits=((None, "red"), (1, "green")),
            ),
            Panel(
                title="Health process", kind="stat", runbook="processes.md#nexushealthprocessdown",
                description="Whether the health process of every host runs.",
                queries=[(f"min(nexus_health_process_up{{{HOST}}})", "")], names=YES_IS_GOOD,
            ),
            Panel(
                title="Configuration valid", kind="stat", runbook="processes.md#nexusreloadfailed",
                description="Whether every host's last reload succeeded.",
                queries=[(f"min(nexus_config_last_reload_successful{{{HOST}}})", "")], names=YES_IS_GOOD,
            ),
            Panel(
                title="Run directory usable", kind="stat", runbook="metrics.md#nexusrundirectoryunusable",
                description="Whether new processes and series have space, on every host.",
                queries=[(f"min(nexus_run_directory_usable{{{HOST}}})", "")], names=YES_IS_GOOD,
            ),
            Panel(
                title="Imbalance", kind="stat", limits=ZERO_IS_GOOD, runbook="metrics.md#nexusaccountsoutofbalance",
                description="Requests started, minus those finished, in flight, and lost; the largest of any host.",
                queries=[(f"max(abs(nexus_accounting_imbalance{{{HOST}}}))", "")],
            ),
            Panel(
                title="Scraped", kind="stat", names=YES_IS_GOOD, runbook="processes.md#nexustargetdown",
                description="Whether Prometheus reaches every host.",
                queries=[('min(up{job="nexus", instance=~"$instance"})', "")],
            ),
        ],
        "Cost": [
            Panel(
                title="Memory", unit="bytes", stacked=True, runbook="processes.md#nexusworkersrestart",
                description="Resident memory of each process.",
                queries=[(f"sum by (instance, role, slot) (nexus_process_resident_memory_bytes{{{HOST}}})", "{{instance}} {{role}} {{slot}}")],
            ),
            Panel(
                title="Processor", stacked=True, runbook="processes.md#nexuseventlooplags",
                description="Cores that each process uses.",
                queries=[(rate("nexus_process_cpu_seconds_total", HOST, "instance", "role", "slot"), "{{instance}} {{role}} {{slot}}")],
            ),
            Panel(
                title="Event loop lag", unit="s", runbook="processes.md#nexuseventlooplags",
                description="How late the workers' event loops run due timers. All their streams are as late.",
                queries=percentiles("nexus_event_loop_lag_seconds", HOST),
            ),
            Panel(
                title="Overhead, p95", unit="s",
                description="Time in the gateway itself: before the request was sent to the backend, and after its response arrived.",
                queries=[(quantile(0.95, "nexus_gateway_overhead_seconds", HOST, "phase"), "{{phase}}")],
            ),
            Panel(
                title="Overhead, mean", unit="s",
                description="The same, on average.",
                queries=[(mean("nexus_gateway_overhead_seconds", HOST, "phase"), "{{phase}}")],
            ),
            Panel(
                title="Scrape", unit="s",
                description="Time to read the metrics, and duration of the whole scrape as Prometheus measured it.",
                queries=[
                    (f"nexus_scrape_duration_seconds{{{HOST}}}", "{{instance}} reading"),
                    ('scrape_duration_seconds{job="nexus", instance=~"$instance"}', "{{instance}} scrape"),
                ],
            ),
        ],
        "Events": [
            Panel(
                title="Workers by host", runbook="processes.md#nexusnoworkers",
                description="Workers that accept connections, that drain, and that hang.",
                queries=[
                    (f"nexus_workers{{{HOST}}}", "{{instance}}"),
                    (f"nexus_workers_draining{{{HOST}}}", "{{instance}} draining"),
                    (f"nexus_workers_silent{{{HOST}}}", "{{instance}} silent"),
                ],
            ),
            Panel(
                title="Log lines dropped", runbook="processes.md#nexusloglinesdropped",
                description="Log lines that nothing read from standard error, within the step.",
                queries=[(f"increase(nexus_log_lines_dropped_total{{{HOST}}}[{EVERY}])", "{{instance}}")],
            ),
            Panel(
                title="Worker restarts", runbook="processes.md#nexusworkersrestart",
                description="Workers started to replace others, within the step.",
                queries=[
                    (f"increase(nexus_worker_restarts_total{{{HOST}}}[{EVERY}])", "started on {{instance}}"),
                    (f"increase(nexus_worker_deaths_total{{{HOST}}}[{EVERY}])", "died on {{instance}}"),
                ],
            ),
            Panel(
                title="Requests lost", runbook="processes.md#nexusrequestslost",
                description="Requests that a killed process had in flight, within the step.",
                queries=[(f"increase(nexus_requests_lost_total{{{HOST}}}[{EVERY}])", "{{instance}}")],
            ),
            Panel(
                title="Version", kind="table",
                description="Version of each process.",
                queries=[(f"max by (instance, version) (nexus_build_info{{{HOST}}})", "")],
            ),
            Panel(
                title="Age of the configuration", unit="s", runbook="processes.md#nexusreloadfailed",
                description="Time since each host last read its configuration successfully.",
                queries=[(f"time() - nexus_config_last_reload_success_timestamp_seconds{{{HOST}}}", "{{instance}}")],
            ),
        ],
        "Figures": [
            Panel(
                title="Series", runbook="metrics.md#nexusseriesnearlimit",
                description="Samples of a scrape. `nexus metrics bound` prints the maximum.",
                queries=[('scrape_samples_scraped{job="nexus", instance=~"$instance"}', "{{instance}}")],
            ),
            Panel(
                title="Names with a label value", unit="percentunit", runbook="metrics.md#nexusseriesnearlimit",
                description="Share of [metrics] max_models and max_backends.",
                queries=[(f"max by (kind) (nexus_labels{{{HOST}}} / nexus_labels_limit{{{HOST}}})", "{{kind}}")],
            ),
            Panel(
                title="Names counted as other", runbook="metrics.md#nexusseriesnearlimit",
                description="Names beyond the limit.",
                queries=[(f"max by (kind) (nexus_labels_overflowed{{{HOST}}})", "{{kind}}")],
            ),
            Panel(
                title="Metrics files damaged", runbook="metrics.md#nexusmetricsfilesdamaged",
                description="Damaged files that were renamed since the gateway started.",
                queries=[(f"nexus_metrics_damaged_files_total{{{HOST}}}", "{{instance}}")],
            ),
            Panel(
                title="Series not shared", runbook="metrics.md#nexusmetricsnotshared",
                description="Series for which there was no space, since the gateway started.",
                queries=[(f"nexus_metrics_write_errors_total{{{HOST}}}", "{{instance}}")],
            ),
            Panel(
                title="Imbalance by host", signed=True, runbook="metrics.md#nexusaccountsoutofbalance",
                description="It may briefly differ from 0 while requests are recorded, but must return to 0.",
                queries=[(f"nexus_accounting_imbalance{{{HOST}}}", "{{instance}}")],
            ),
        ],
    },
)  # fmt: skip
