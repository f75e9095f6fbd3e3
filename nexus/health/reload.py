"""Reading the configuration file again while the gateway runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from nexus.config import Config, ConfigError, LoadedConfig, load
from nexus.config.loading import restart_needed
from nexus.fleet.reload_report import ReloadReport, last_reload, write_reload_report
from nexus.fleet.run_directory import RunDirectory
from nexus.health.change_files import ChangeFiles
from nexus.health.monitor import FleetMonitor
from nexus.health.publisher import Publisher
from nexus.runtime import log as logs
from nexus.runtime.sd_notify import Notifier
from nexus.runtime.text import redact

log = logging.getLogger("nexus.health")


class Reloader:
    """Applies the configuration file again; a file with faults changes nothing.

    The result is left in the run directory for the command that asked.
    """

    def __init__(
        self,
        loaded: LoadedConfig,
        environ: Mapping[str, str],
        *,
        run_dir: RunDirectory,
        monitor: FleetMonitor,
        publisher: Publisher,
        changes: ChangeFiles,
        notifier: Notifier,
    ) -> None:
        self._path = loaded.path
        self._environ = environ
        self._run_dir = run_dir
        self._monitor = monitor
        self._publisher = publisher
        self._changes = changes
        self._notifier = notifier
        # The environment may override the file, but only a change of the file needs a restart.
        self._file_at_start = _file_alone(loaded.path)

    def reload(self) -> None:
        self._notifier.reloading()
        try:
            self._write_report(self._reload(last_reload(self._run_dir.path).count + 1))
        finally:
            self._notifier.ready(self._publisher.status_line())

    def _reload(self, count: int) -> ReloadReport:
        try:
            loaded = load(self._path, environ=self._environ)
            fleet = self._monitor.new_fleet(self._changes.overlay(loaded.config))
        except ConfigError as error:
            problems = tuple(map(redact, error.problems))
            log.error(
                "configuration not reloaded, the old one stays", extra={"why": "; ".join(problems)}
            )
            self._publisher.record_reload(problems)
            return ReloadReport(count=count, problems=problems)
        used = str(loaded.path.absolute()) if loaded.path else ""
        before = self._monitor.fleet.config
        file = _file_alone(self._path)
        restart = restart_needed(self._file_at_start, file) if self._file_at_start and file else []
        settings = loaded.config.logging
        logs.configure(
            level=settings.level, kind=settings.format, component_levels=settings.component_levels
        )
        self._publisher.record_reload()
        if not self._monitor.adopt(fleet):
            problem = f"The fleet cannot be written into {self._run_dir.path}; the log says why."
            return ReloadReport(count=count, problems=(problem,))
        backends = len(fleet.backends)
        log.info(
            "configuration reloaded",
            extra={"backends": backends, "after_a_restart": ", ".join(restart) or None},
        )
        warnings = (*loaded.warnings, *_new_budgets(before, fleet.config))
        for warning in warnings:
            log.warning(warning)
        self._monitor.probe_all_soon()
        return ReloadReport(
            count=count,
            warnings=warnings,
            restart=tuple(restart),
            backends=backends,
            file=used,
        )

    def _write_report(self, report: ReloadReport) -> None:
        try:
            write_reload_report(self._run_dir.path, report)
        except OSError as error:
            log.error("the reload's report cannot be written", extra={"why": error})


def _file_alone(path: Path | None) -> Config | None:
    """The settings of the file alone; None if they need the environment to be usable."""
    try:
        return load(path, environ={}).config if path else None
    except ConfigError:
        return None


def _new_budgets(before: Config, after: Config) -> Iterator[str]:
    """A sentence if budgets were renamed: what was spent stays under the old name."""
    old = {budget.name for budget in before.budgets}
    new = {budget.name for budget in after.budgets}
    if (gone := sorted(old - new)) and (added := sorted(new - old)):
        yield (
            f"[[budgets]] {', '.join(added)}: starts with nothing spent. What was spent under "
            f"{', '.join(gone)} is not carried over."
        )
