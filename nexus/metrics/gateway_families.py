"""The metric families of the gateway's own processes, files and accounting."""

from __future__ import annotations

from nexus.metrics.family import Label, counter, gauge
from nexus.metrics.label_values import FOLLOWS

HEALTH_PROCESS_UP = gauge(
    "nexus_health_process_up", "1 if the health process runs and its event loop moves.", "scrape"
)
IMBALANCE = gauge(
    "nexus_accounting_imbalance",
    "Requests started, less those finished, in flight and lost, each counted separately. "
    "It must be 0.",
    "scrape",
)
WORKERS = gauge("nexus_workers", "Worker processes that accept connections.", "scrape")
WORKERS_DRAINING = gauge(
    "nexus_workers_draining",
    "Worker processes that were replaced and only finish their requests.",
    "scrape",
)
WORKERS_SILENT = gauge(
    "nexus_workers_silent",
    "Worker processes whose event loop has not run for more than ten seconds.",
    "scrape",
)
WORKER_RESTARTS = counter(
    "nexus_worker_restarts_total",
    "Workers started beyond the number with which the gateway was started.",
    "scrape",
)
WORKER_DEATHS = counter(
    "nexus_worker_deaths_total",
    "Workers that were killed or crashed. Workers that end because of a reload, recycling or a "
    "change of their number are not counted.",
    "scrape",
)
PROCESS_MEMORY = gauge(
    "nexus_process_resident_memory_bytes",
    "Resident memory of each process.",
    "scrape",
    slot=Label(names="slots"),
    role=FOLLOWS,
    pid=FOLLOWS,
)
PROCESS_CPU = counter(
    "nexus_process_cpu_seconds_total",
    "CPU time of each process, user and system.",
    "scrape",
    slot=Label(names="slots"),
    role=FOLLOWS,
    pid=FOLLOWS,
)
RUN_DIRECTORY = gauge(
    "nexus_run_directory_usable", "1 if the run directory exists and has space, else 0.", "scrape"
)
WRITE_ERRORS = counter(
    "nexus_metrics_write_errors_total",
    "Series that are not shared because their file could not grow. They are missing in scrapes.",
)
LOG_LINES_DROPPED = counter(
    "nexus_log_lines_dropped_total",
    "Log lines of workers and the health process that were dropped because nobody read standard "
    "error.",
)
DAMAGED_FILES = counter(
    "nexus_metrics_damaged_files_total", "Metrics files that were damaged and set aside.", "scrape"
)
SCRAPE_DURATION = gauge(
    "nexus_scrape_duration_seconds", "How long it took to collect this scrape.", "scrape"
)
BUILD_INFO = gauge("nexus_build_info", "The version; always 1.", "scrape", version=FOLLOWS)
