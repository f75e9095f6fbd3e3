"""Units as systemd runs them: their commands, their environment, a notify socket, sockets held
for them, their signals."""

import re
import shlex
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.polling import until
from tests.support.processes import ROOT, Measured, free_port

UNITS = ROOT / "deploy" / "systemd"

_AS_SYSTEMD = """
import os, sys
if fd := int(sys.argv[1]):
    os.dup2(fd, 3)
    os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
if os.environ.get("WATCHDOG_USEC"):
    os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Unit:
    """A unit file's settings, with its paths replaced by those of a test."""

    def __init__(self, name: str, paths: Mapping[str, str]) -> None:
        self.name = name
        text = (UNITS / name).read_text()
        for there, here in paths.items():
            text = text.replace(there, here)
        self.text = text
        lines = [line.partition("=") for line in text.splitlines() if re.match(r"\w+=", line)]
        self._settings = [(key, value) for key, _, value in lines]

    def all(self, key: str) -> list[str]:
        return [value for name, value in self._settings if name == key]

    def one(self, key: str) -> str:
        (value,) = self.all(key)
        return value

    def seconds(self, key: str) -> float:
        return float(self.one(key))

    def command(self, key: str) -> list[str]:
        return shlex.split(self.one(key))

    def environ(self) -> dict[str, str]:
        """What systemd gives a service: little of its own, the unit's, and that of the unit's
        files."""
        given = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
        for line in self.all("Environment"):
            given |= dict(word.split("=", 1) for word in shlex.split(line))
        for named in self.all("EnvironmentFile"):
            file = Path(named.removeprefix("-"))
            if file.exists() or not named.startswith("-"):
                lines = [
                    line
                    for line in file.read_text().splitlines()
                    if line and not line.startswith("#")
                ]
                given |= dict(line.split("=", 1) for line in lines)
        return given

    def run(self, key: str) -> subprocess.CompletedProcess[str]:
        """A command of the unit, such as `ExecReload`, beside the service."""
        return subprocess.run(
            self.command(key),
            env=self.environ(),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=30,
        )


@dataclass(frozen=True)
class Told:
    """One notification: who sent it, when, and what it says."""

    pid: int
    at: float
    fields: dict[str, str]


class NotifySocket:
    """What `$NOTIFY_SOCKET` names; collects what comes, as the service manager would."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.path = path
        self.told: list[Told] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.bind(str(path))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            data, ancillary, _, _ = self._sock.recvmsg(
                4096, socket.CMSG_SPACE(struct.calcsize("3i"))
            )
            if not data:
                return
            pid = struct.unpack("3i", ancillary[0][2])[0]
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            self.told.append(Told(pid, time.monotonic(), fields))

    def having(self, key: str) -> list[Told]:
        return [told for told in list(self.told) if key in told.fields]

    def status(self) -> str:
        """The last one told; empty before the first."""
        return next((told.fields["STATUS"] for told in reversed(self.having("STATUS"))), "")

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", str(self.path))
        self._thread.join()
        self._sock.close()


class Service(Measured):
    """A unit's `ExecStart`, run as systemd would; `listener` is the socket that its socket unit
    holds."""

    def __init__(
        self,
        unit: Unit,
        directory: Path,
        *,
        listener: socket.socket | None = None,
        watchdog_s: float | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.unit = unit
        self.notify = NotifySocket(directory / f"{unit.name}.notify")
        log = directory / f"{unit.name}.log"
        log.touch()
        status = log.stat()
        given = {
            **unit.environ(),
            "NOTIFY_SOCKET": str(self.notify.path),
            "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}",
            **({"WATCHDOG_USEC": str(int(watchdog_s * 1e6))} if watchdog_s else {}),
            **(environ or {}),
        }
        fds = (listener.fileno(),) if listener else ()
        super().__init__(
            [
                sys.executable,
                "-c",
                _AS_SYSTEMD,
                str(fds[0] if fds else 0),
                *unit.command("ExecStart"),
            ],
            log=log,
            environ=given,
            cwd=Path("/"),
            pass_fds=fds,
        )

    def wait_ready(self) -> Told:
        def ready() -> list[Told]:
            assert self.child.poll() is None, self.output()
            return self.notify.having("READY")

        return until(ready, within_s=min(20, self.unit.seconds("TimeoutStartSec")))[0]

    def stop(self, *, within_s: float | None = None, number: int | None = None) -> int:
        """TERM to the main process alone, as `KillMode=mixed` and the default say, and its time
        to end."""
        try:
            given_s = self.unit.seconds("TimeoutStopSec") if within_s is None else within_s
            return super().stop(within_s=given_s, **({"number": number} if number else {}))
        finally:
            if self.notify.path.exists():
                self.notify.close()
                self.notify.path.unlink()


def processes_of(pid: int) -> list[int]:
    """The children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def here(directory: Path) -> dict[str, str]:
    """The paths of an installed gateway → those of a test that runs this checkout in
    `directory`."""
    for name in ("run", "etc", "state"):
        (directory / name).mkdir(mode=0o700, exist_ok=True)
    return {
        "/opt/nexus/current/bin": f"{sys.prefix}/bin",
        "/opt/nexus/current/gunicorn.conf.py": str(ROOT / "gunicorn.conf.py"),
        "/run/nexus": str(directory / "run"),
        "/etc/nexus": str(directory / "etc"),
        "/var/lib/nexus": str(directory / "state"),
    }


def held_listener() -> socket.socket:
    """A listening socket on a port of its own, as nexus.socket has it; it outlives the services
    that it is given to."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", free_port()))
    sock.listen(int(Unit("nexus.socket", {}).one("Backlog")))
    return sock
