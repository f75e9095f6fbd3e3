"""`nexus-health`, also `python -m nexus.health`: starts the health process."""

from gevent import monkey

from nexus.runtime.plugins import metadata_read_once

with metadata_read_once():
    monkey.patch_all()  # before anything that imports sockets

import argparse
import logging
import os
import signal
import sys

from nexus.config import ConfigError, load
from nexus.fleet.locks import LockFile
from nexus.fleet.run_directory import RunDirectory, RunDirectoryError
from nexus.fleet.slot_lease import NoFreeSlotError
from nexus.health.process import HealthProcess
from nexus.runtime import log as logs
from nexus.runtime import stderr
from nexus.runtime.host import raise_descriptor_limit
from nexus.runtime.parent_death import end_with_parent
from nexus.runtime.sd_notify import Notifier


def main() -> None:
    """Run until TERM or INT. Exit status 2: the configuration or run directory cannot be used."""
    parser = argparse.ArgumentParser(prog="nexus-health", description=__doc__)
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="configuration file (default: $NEXUS_CONFIG, nexus.toml)",
    )
    arguments = parser.parse_args()
    end_with_parent()
    stderr.make_nonblocking()
    raise_descriptor_limit()
    notifier = Notifier.from_environ(os.environ)
    try:
        loaded = load(arguments.config)
        settings = loaded.config.logging
        logs.configure(
            level=settings.level, kind=settings.format, component_levels=settings.component_levels
        )
        run_dir = RunDirectory.of(loaded.config)
        run_dir.prepare()
        lock = LockFile(run_dir.path / "health.lock")
        if not lock.acquire(0):
            logs.fatal(
                f"Another health process serves {run_dir.path} ({lock.read_note()}); "
                "stop that one first."
            )
            sys.exit(1)
        # There are no logs to reopen, and the default action would end the process.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        # Ignored until it is handled: others find the pid in the lock file, and may send it.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        lock.write_note(f"pid {os.getpid()}")
    except (ConfigError, RunDirectoryError) as error:
        logs.fatal(str(error))
        sys.exit(2)
    except OSError as error:
        logs.fatal(f"The run directory {run_dir.path} cannot be used ({error.strerror}).")
        sys.exit(2)
    for warning in loaded.warnings:
        logging.getLogger("nexus.config").warning(warning)
    try:
        status = HealthProcess(loaded, run_dir, notifier=notifier).run()
    except ConfigError as error:
        logs.fatal(str(error))
        status = 2
    except (NoFreeSlotError, OSError) as error:
        logs.fatal(f"The health process cannot go on: {error}.")
        status = 1
    finally:
        lock.close()
    sys.exit(status)


if __name__ == "__main__":
    main()
