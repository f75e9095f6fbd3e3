"""The run directory, through which the processes of one gateway communicate.

<run_dir>/
  format               version of this layout
  gateway.lock         held by the gateway's first process, which the file names
  health.lock          held by the health process
  fleet.json           the fleet snapshot                     (snapshot.py)
  fleet.revision       its revision number, 8 shared bytes
  problems.json        what is wrong with the gateway         (problems.py)
  windows.json         the last hour and day of each backend  (windows.py)
  live.json            the dashboard's state                  (dashboard_state.py)
  reload.wanted        exists while a reload is requested
  reload.json          result of the last reload              (reload_report.py)
  admin.token          token for operators who have set none
  current              → generations/<id>, moved atomically
  generations/<id>/    one start of the gateway
    started.json       time of the start
    slots              a locked byte for each process         (slot_lease.py)
    load               requests in flight of each process     (load_table.py)
    circuits           what requests showed of each backend   (circuits.py)
    shares             what each key used, for the queue      (share_table.py)
    limits.db          usage of limits, if there are any      (limit_table.py)
    usage/             what requests used, if it is priced    (metrics/usage.py)
    prefixes           which backends served which prompts    (prefix_table.py)
    sticky             which backends store which responses   (sticky_table.py)
    background         what responses in the background took  (background_table.py)
    recent             the last finished requests             (history.py)
    changes.json       changes of operators for this run      (health/change_files.py)
    metrics/           prometheus_client's files, by slot
"""

from __future__ import annotations

import calendar
import contextlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from nexus.config import Config
from nexus.fleet.load_table import HEALTH, SLOTS, LoadTable
from nexus.fleet.locks import LockFile
from nexus.runtime.files import who_else_writes, write_atomically

log = logging.getLogger("nexus.fleet")

FORMAT = "6"
_NAMED_BY = "%Y%m%dT%H%M%S"
_PROBE_BYTES = 4096
_LONGEST_START_S, _POLL_INTERVAL_S = 5.0, 0.005
_RELOAD_REQUEST = "reload.wanted"


class RunDirectoryError(Exception):
    """The run directory cannot be used; the message says why, and what to do."""


class Started(msgspec.Struct, frozen=True):
    """When a generation started, and with how many workers.

    Attributes:
        at: In Unix seconds.
        monotonic: On the host's monotonic clock.
    """

    at: float
    monotonic: float
    workers: int = 0

    @classmethod
    def now(cls, workers: int = 0) -> Started:
        return cls(at=time.time(), monotonic=time.monotonic(), workers=workers)


class Generation:
    """One start of the gateway: its slots, counters and tables."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.slots = path / "slots"
        self.load = path / "load"
        self.circuits = path / "circuits"
        self.prefixes = path / "prefixes"
        self.sticky = path / "sticky"
        self.background = path / "background"
        self.history = path / "recent"
        self.limits = path / "limits.db"
        self.usage = path / "usage"
        self.shares = path / "shares"
        self.metrics = path / "metrics"

    def started(self) -> Started:
        """When it started. A damaged file is rewritten from the generation's name and table."""
        file = self.path / "started.json"
        try:
            return msgspec.json.decode(file.read_bytes(), type=Started)
        except (OSError, msgspec.MsgspecError) as error:
            started = self._started_by_name()
            log.error(
                "the time of the start cannot be read and is rewritten",
                extra={"path": file, "why": error},
            )
        with contextlib.suppress(OSError):
            write_atomically(file, msgspec.json.encode(started))
        return started

    def _started_by_name(self) -> Started:
        try:
            at = float(calendar.timegm(time.strptime(self.name.partition("-")[0], _NAMED_BY)))
        except ValueError:
            at = time.time()
        workers = 0
        with contextlib.suppress(OSError):
            table = LoadTable(self.load)
            workers = sum(table.row(slot).worker_starts > 0 for slot in range(table.rows))
            table.close()
        return Started(at=at, monotonic=time.monotonic() - (time.time() - at), workers=workers)

    def held(self) -> bool:
        """Whether any process still holds one of its slots."""
        locks = LockFile(self.slots)
        try:
            return any(map(locks.held_elsewhere, range(SLOTS)))
        finally:
            locks.close()


class RunDirectory:
    """Makes, claims, and reads the directory. Safe from any process of the gateway."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def of(cls, config: Config) -> RunDirectory:
        """The directory that the configuration names, or the default one for its port."""
        return cls(config.server.run_dir or default_run_dir(config.server.port))

    def check(self) -> bool:
        """Whether the directory exists. Raises `RunDirectoryError` if others can write to it.

        Every process and command calls this before it uses the directory. If the check passes, this
        user made everything in it, so links in it need no further check.
        """
        try:
            about = self.path.lstat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unusable(error) from error
        if not stat.S_ISDIR(about.st_mode):
            raise RunDirectoryError(
                f"The run directory {self.path} is a link or a file, not a directory; "
                "name a directory in [server] run_dir or $NEXUS_RUN_DIR."
            )
        writer = who_else_writes(about)
        if writer == "owner":
            raise RunDirectoryError(
                f"The run directory {self.path} belongs to another user (uid {about.st_uid}); "
                "run this as that user, or name one of your own in [server] run_dir "
                "or $NEXUS_RUN_DIR."
            )
        if writer == "others":
            raise RunDirectoryError(
                f"Other users may write in the run directory {self.path}; "
                "stop the gateway, delete the directory, and give the new one mode 0700."
            )
        return True

    def _unusable(self, error: OSError) -> RunDirectoryError:
        return RunDirectoryError(
            f"The run directory {self.path} cannot be used ({error.strerror}); "
            "name one that this user may write, with space, in [server] run_dir or $NEXUS_RUN_DIR."
        )

    def prepare(self) -> None:
        """Make the directory if it is missing. Raises `RunDirectoryError` if it cannot be used."""
        try:
            self._prepare()
        except OSError as error:
            raise self._unusable(error) from error

    def _prepare(self) -> None:
        if not self.check():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.check()  # another user may have made it meanwhile
        (self.path / "generations").mkdir(mode=0o700, exist_ok=True)
        probe = self.path / f".probe-{os.getpid()}"
        probe.unlink(missing_ok=True)
        fd = os.open(
            probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(fd, bytes(_PROBE_BYTES))
        finally:
            os.close(fd)
            probe.unlink(missing_ok=True)
        version = self.path / "format"
        existing = version.read_text().strip() if version.exists() else ""
        if existing != FORMAT:
            if existing and any(generation.held() for generation in self.generations()):
                raise RunDirectoryError(
                    f"The run directory {self.path} is in use by another version of Nexus; "
                    "stop that first."
                )
            for stale in ("fleet.json", "fleet.revision", "current"):
                (self.path / stale).unlink(missing_ok=True)
            write_atomically(version, FORMAT.encode())

    def claim(self, owner: str) -> LockFile:
        """Own the directory until the returned lock is closed.

        `owner` describes this process to a second gateway that tries the same.
        """
        self.prepare()
        lock = LockFile(self.path / "gateway.lock")
        if not lock.acquire(0):
            note = lock.read_note()
            lock.close()
            raise RunDirectoryError(
                f"The run directory {self.path} is in use by {note or 'another gateway'}; "
                "stop that one, or give this one a directory of its own in [server] run_dir "
                "or $NEXUS_RUN_DIR."
            )
        lock.write_note(owner)
        return lock

    def owner(self) -> str | None:
        """The description of the process that owns the directory; None if none does."""
        note = self._holder_of("gateway.lock")
        return None if note is None else note or "another gateway"

    def health_process_alive(self) -> bool:
        return self._holder_of("health.lock") is not None

    def health_process_pid(self) -> int | None:
        """The process id of the health process; None if none runs."""
        note = (self._holder_of("health.lock") or "").removeprefix("pid ")
        return int(note) if note.isdigit() else None

    def _holder_of(self, name: str) -> str | None:
        """What the holder of a lock has written into its file; None if nobody holds it."""
        if not (self.path / name).exists():
            return None
        lock = LockFile(self.path / name)
        try:
            return lock.read_note() if lock.held_elsewhere(0) else None
        finally:
            lock.close()

    def request_reload(self) -> None:
        """Let the health process read the configuration again. Raises OSError."""
        write_atomically(self.path / _RELOAD_REQUEST, b"")

    def consume_reload_request(self) -> bool:
        """Whether a reload was requested since the last call. Raises OSError."""
        try:
            (self.path / _RELOAD_REQUEST).unlink()
        except FileNotFoundError:
            return False
        return True

    def own_token(self) -> str | None:
        """The token of the directory, which only its owner can read; None if there is none."""
        try:
            return (self.path / "admin.token").read_text(encoding="ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def health_heartbeat_ns(self) -> int | None:
        """The last heartbeat of the health process's event loop; None if unknown."""
        try:
            table = LoadTable(generation.load) if (generation := self.current()) else None
        except OSError:
            return None
        if table is None:
            return None
        try:
            return table.last_heartbeat(HEALTH)
        finally:
            table.close()

    def new_generation(self, *, workers: int = 0) -> Generation:
        """Make a generation, make it the current one, and delete those that no process holds."""
        with self._generations_locked():
            return self._make_generation(workers)

    @contextlib.contextmanager
    def current_or_new(self) -> Iterator[Generation]:
        """The current generation; a new one if there is none. Within the context, no process that
        starts deletes it, although none holds it yet."""
        with self._generations_locked():
            yield self.current() or self._make_generation(0)

    @contextlib.contextmanager
    def _generations_locked(self) -> Iterator[None]:
        """Let no other process make or delete generations meanwhile. One that was stopped is not
        waited for."""
        place = self.path / "generations"
        lock = LockFile(place, fd=os.open(place, os.O_RDONLY | os.O_CLOEXEC))
        try:
            deadline = time.monotonic() + _LONGEST_START_S
            while not (locked := lock.acquire_file()) and time.monotonic() < deadline:
                time.sleep(_POLL_INTERVAL_S)
            if not locked:
                log.warning("another process has been starting for long", extra={"path": place})
            yield
        finally:
            lock.close()

    def _make_generation(self, workers: int) -> Generation:
        started = time.strftime(_NAMED_BY, time.gmtime())
        name = f"{started}-{os.getpid()}-{time.monotonic_ns() % 10**6:06d}"
        generation = Generation(self.path / "generations" / name)
        generation.path.mkdir(mode=0o700)
        generation.metrics.mkdir(mode=0o700)
        write_atomically(
            generation.path / "started.json", msgspec.json.encode(Started.now(workers))
        )
        LoadTable.create(generation.load)  # with its final size, so that a truncation shows
        link = self.path / f".current-{name}"
        link.symlink_to(Path("generations") / name)
        link.replace(self.path / "current")
        self._delete_others(name)
        return generation

    def delete_unused_generations(self) -> None:
        """Delete those but the current one that no process holds."""
        with self._generations_locked():
            if (current := self.current()) is not None:
                self._delete_others(current.name)

    def _delete_others(self, name: str) -> None:
        for other in self.generations():
            if other.name != name and not other.held():
                shutil.rmtree(other.path, ignore_errors=True)

    def current(self) -> Generation | None:
        """The generation that new processes join; None before the first start."""
        try:
            target = (self.path / "current").readlink()
        except OSError:
            return None
        generation = Generation(self.path / target)
        return generation if generation.metrics.is_dir() else None

    def generations(self) -> list[Generation]:
        parent = self.path / "generations"
        return [Generation(path) for path in sorted(parent.iterdir())] if parent.is_dir() else []


def default_run_dir(port: int, environ: Mapping[str, str] | None = None) -> Path:
    """`$RUNTIME_DIRECTORY` (systemd), else the user's directory in memory for this port."""
    environ = os.environ if environ is None else environ
    if given := environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])
    if (runtime := environ.get("XDG_RUNTIME_DIR")) and os.access(runtime, os.W_OK):
        return Path(runtime) / f"nexus-{port}"
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"nexus-{os.geteuid()}-{port}"
