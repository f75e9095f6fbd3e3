"""nginx, haproxy and Apache with the configuration files of deploy/, in which only addresses and
paths are a test's own."""

import contextlib
import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.polling import until
from tests.support.processes import ROOT, Gateway, Process, clean_environ, free_port
from tests.support.services import processes_of

DEPLOY = ROOT / "deploy"
PUBLIC = "127.0.0.2"
"""An address of this host that no list of operators has."""


def program(name: str) -> str:
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
    assert found, f"{name} is not installed; tests/install-packages.sh does it"
    return found


def substituted(text: str, ours: Mapping[str, str]) -> str:
    """The text with each of these words replaced, all of which it must have."""
    missing = [word for word in ours if word not in text]
    assert not missing, missing
    return re.sub(
        "|".join(map(re.escape, sorted(ours, key=len, reverse=True))),
        lambda word: ours[word[0]],
        text,
    )


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for this host that signs itself, and its key."""
    files = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-out",
            files[0],
            "-keyout",
            files[1],
        ],
        check=True,
        capture_output=True,
    )
    return files


class Balancer(Process):
    """A balancer in front of one gateway or of two; `port` is where clients come, by TLS,
    `operators` where those do."""

    check: Sequence[str]
    start: Sequence[str]
    environ: Mapping[str, str] = {}
    waits_for_the_only_gateway = True

    def __init__(
        self, command: list[str], directory: Path, port: int, operators: Sequence[int]
    ) -> None:
        self.port, self.operators = port, operators
        self.tls = ssl.create_default_context(cafile=directory / "certificate.pem")
        environ = clean_environ(**self.environ)
        done = subprocess.run([*command, *self.check], capture_output=True, text=True, env=environ)
        self.verdict = done.stdout + done.stderr
        assert done.returncode == 0, self.verdict
        super().__init__([*command, *self.start], log=directory / "balancer.log", environ=environ)
        try:
            until(lambda: socket.create_connection(("127.0.0.1", port)).close() is None)
        except AssertionError as error:
            self.child.kill()
            raise AssertionError(self.output()) from error

    def lines(self) -> list[str]:
        """The log of requests."""
        raise NotImplementedError

    def drain(self, number: int, *, on: bool = True) -> None:
        """Send nothing new to a gateway (or do again), as docs/balancers.md has it."""
        raise NotImplementedError

    def connect(self, *, source: str = PUBLIC, port: int = 0) -> http.client.HTTPConnection:
        """A client's connection; `port` is that of an operator, without TLS."""
        if port:
            return http.client.HTTPConnection(
                "127.0.0.1", port, timeout=30, source_address=(source, 0)
            )
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=30, source_address=(source, 0), context=self.tls
        )

    def get(
        self, path: str, *, source: str = PUBLIC, port: int = 0
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content."""
        with contextlib.closing(self.connect(source=source, port=port)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return (
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read(),
            )


class Nginx(Balancer):
    """Under Debian's own nginx.conf."""

    check, start = ["-t"], ["-g", "daemon off;"]
    waits_for_the_only_gateway = False

    def __init__(self, directory: Path, gateways: Sequence[Gateway]) -> None:
        files = DEPLOY / "nginx"
        (directory / "nexus").mkdir(parents=True)
        certificate(directory)
        (directory / "conf.d").mkdir()
        port, operators = free_port(), [free_port() for _ in gateways]
        for name in ("http.conf", "proxy.conf"):
            shutil.copy(files / name, directory / "nexus" / name)
        server = (files / "server.conf").read_text()
        (directory / "nexus" / "server.conf").write_text(
            substituted(server, {"/var/log/nginx": str(directory)})
        )
        name, ours = _addresses(gateways, operators)
        ours |= {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "[::]:443": f"127.0.0.1:{free_port()}",
            "/etc/nginx/nexus": str(directory),
        }
        text = (files / f"{name}.conf").read_text()
        (directory / "nexus" / f"{name}.conf").write_text(substituted(text, ours))
        (directory / "conf.d" / "nexus.conf").symlink_to(f"../nexus/{name}.conf")
        places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        (directory / "conf.d" / "places.conf").write_text(
            "".join(f"{place}_temp_path {directory}/{place};\n" for place in places)
        )
        main = Path("/etc/nginx/nginx.conf").read_text()
        (directory / "nginx.conf").write_text(
            substituted(
                main,
                {
                    "user www-data;": "user root;" if os.geteuid() == 0 else "",
                    "/run/nginx.pid": f"{directory}/nginx.pid",
                    "/var/log/nginx": str(directory),
                    "/etc/nginx/conf.d/": f"{directory}/conf.d/",
                    "include /etc/nginx/sites-enabled/*;": "",
                    "worker_connections 768;": "worker_connections 4096;",
                },
            )
        )
        self._log = directory / "nexus.log"
        self._file = directory / "nexus" / f"{name}.conf"
        self._gateways = gateways
        self._command = [program("nginx"), "-c", str(directory / "nginx.conf")]
        super().__init__(self._command, directory, port, operators)

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def drain(self, number: int, *, on: bool = True) -> None:
        text = self._file.read_text()
        address = f"server 127.0.0.1:{self._gateways[number].port} "
        marked = re.sub(f"({address}.*?)( down)?;", r"\1 down;" if on else r"\1;", text)
        assert marked.count(" down;") == (2 if on else 0)
        self._file.write_text(marked)
        workers = set(processes_of(self.pid))
        subprocess.run([*self._command, "-s", "reload"], check=True)
        # The old processes go on with what they have; they accept nothing once the new ones run.
        until(lambda: set(processes_of(self.pid)) - workers)
        until(lambda: all(_is_leaving(pid) for pid in workers))


class Haproxy(Balancer):
    check, start = ["-c"], ["-db"]

    def __init__(self, directory: Path, gateways: Sequence[Gateway]) -> None:
        files = DEPLOY / "haproxy"
        place = directory / "nexus"
        place.mkdir(parents=True)
        port, operators, self.own_port = free_port(), [free_port() for _ in gateways], free_port()
        pair = directory / "nexus.pem"
        pair.write_text("".join(file.read_text() for file in certificate(directory)))
        self._socket = directory / "admin.sock"
        ours = {
            "log /dev/log local0": "log stdout format raw local0",
            "    user haproxy\n    group haproxy\n    chroot /var/lib/haproxy\n": "",
            "/run/haproxy/admin.sock": str(self._socket),
            "maxconn 20000": "maxconn 4000",  # descriptors that a test may not have
            ":443,:::443": f"127.0.0.1:{port}",
            "/etc/haproxy/nexus.pem": str(pair),
            "127.0.0.1:8405": f"127.0.0.1:{self.own_port}",
        }
        (place / "nexus.cfg").write_text(substituted((files / "nexus.cfg").read_text(), ours))
        name, ours = _addresses(gateways, operators)
        (place / f"{name}.cfg").write_text(substituted((files / f"{name}.cfg").read_text(), ours))
        super().__init__([program("haproxy"), "-f", str(place)], directory, port, operators)

    def lines(self) -> list[str]:
        return [line for line in self.output().splitlines() if line.startswith("{")]

    def tell(self, command: str) -> str:
        """Say something at the runtime socket, and give the response."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._socket))
            sock.sendall(f"{command}\n".encode())
            return sock.makefile().read()

    def drain(self, number: int, *, on: bool = True) -> None:
        assert not self.tell(
            f"set server nexus/gateway-{number + 1} state {'drain' if on else 'ready'}"
        ).strip()


class Apache(Balancer):
    """Under Debian's own apache2.conf, with the modules that docs/balancers.md names."""

    check, start = ["-t"], ["-DFOREGROUND"]
    waits_for_the_only_gateway = False

    def __init__(self, directory: Path, gateways: Sequence[Gateway]) -> None:
        files, debian = DEPLOY / "apache", Path("/etc/apache2")
        for name in ("nexus", "mods-enabled", "sites-enabled"):
            (directory / name).mkdir(parents=True)
        certificate(directory)
        shutil.copy(debian / "apache2.conf", directory)
        enabled = [file.name for file in (debian / "mods-enabled").iterdir()]
        asked = re.search("a2enmod (.+)", (ROOT / "docs/balancers.md").read_text())
        assert asked
        for module in [name.partition(".")[0] for name in enabled] + asked[1].split():
            for file in (debian / "mods-available").glob(f"{module}.*"):
                if not (link := directory / "mods-enabled" / file.name).exists():
                    link.symlink_to(file)
        port, operators = free_port(), [free_port() for _ in gateways]
        (directory / "ports.conf").write_text(f"Listen 127.0.0.1:{port}\nServerName localhost\n")
        name, ours = _addresses(gateways, operators)
        ours |= {"*:443": f"127.0.0.1:{port}", "/etc/apache2/nexus": str(directory)}
        for shared in ("threads.conf", "server.conf", "proxy.conf"):
            shutil.copy(files / shared, directory / "nexus" / shared)
        text = (files / f"{name}.conf").read_text()
        (directory / "nexus" / f"{name}.conf").write_text(substituted(text, ours))
        (directory / "sites-enabled" / "nexus.conf").symlink_to(f"../nexus/{name}.conf")
        self._log, self._file = directory / "nexus.log", directory / "nexus" / f"{name}.conf"
        self._gateways = gateways
        places = dict.fromkeys(("RUN_DIR", "LOCK_DIR", "LOG_DIR"), str(directory))
        places |= {"RUN_USER": "www-data", "RUN_GROUP": "www-data"}
        places |= {"PID_FILE": f"{directory}/apache2.pid"}
        self.environ = {f"APACHE_{name}": value for name, value in places.items()}
        self._command = [program("apache2"), "-d", str(directory)]
        super().__init__(self._command, directory, port, operators)

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def drain(self, number: int, *, on: bool = True) -> None:
        text, address = self._file.read_text(), f"http://127.0.0.1:{self._gateways[number].port}"
        marked = re.sub(
            f"(BalancerMember {address} .*?)( status=\\+D)?\n",
            r"\1 status=+D\n" if on else r"\1\n",
            text,
        )
        assert marked != text
        self._file.write_text(marked)
        workers = set(processes_of(self.pid))
        environ = clean_environ(**self.environ)
        subprocess.run([*self._command, "-k", "graceful"], check=True, env=environ)
        until(lambda: set(processes_of(self.pid)) - workers)
        until(lambda: not any(_listens(pid, self.port) for pid in workers))


def _addresses(gateways: Sequence[Gateway], operators: Sequence[int]) -> tuple[str, dict[str, str]]:
    """Which file it is, and what stands in it for our addresses."""
    ours = {
        f"127.0.0.1:{8081 + number}": f"127.0.0.1:{port}" for number, port in enumerate(operators)
    }
    if len(gateways) == 1:
        (gateway,) = gateways
        return "one-gateway", ours | {
            "127.0.0.1:8000": f"127.0.0.1:{gateway.port}",
            "127.0.0.1:9464": f"127.0.0.1:{gateway.operations_port}",
        }
    return "several-gateways", ours | {
        f"10.0.0.{11 + number}:8000": f"127.0.0.1:{gateway.port}"
        for number, gateway in enumerate(gateways)
    }


def _is_leaving(pid: int) -> bool:
    """Whether a process of nginx has ended, or says that it will when its connections have."""
    try:
        return b"shutting down" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return True


def _listens(pid: int, port: int) -> bool:
    """Whether a process still accepts connections at a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    listening = {
        f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")
    }
    try:
        return any(str(file.readlink()) in listening for file in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return False
