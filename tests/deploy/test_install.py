"""`deploy/install.sh` into a scratch directory: what it lays down, twice the same, run, and
taken away."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.load import chat, run
from tests.support.processes import ROOT, backend_toml, clean_environ, free_port
from tests.support.services import UNITS, Service, Unit, held_listener, here

pytestmark = pytest.mark.e2e

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [
    classifier.rpartition(" ")[2]
    for classifier in _PROJECT["classifiers"]
    if "Python :: 3." in classifier
]
SCRIPT = ROOT / "deploy" / "install.sh"
FILES = {
    "etc/systemd/system/nexus.socket": "nexus.socket",
    "etc/systemd/system/nexus.service": "nexus.service",
    "etc/systemd/system/nexus-health.service": "nexus-health.service",
    "etc/systemd/system/nexus.target": "nexus.target",
    "etc/tmpfiles.d/nexus.conf": "tmpfiles.conf",
    "etc/sysusers.d/nexus.conf": "sysusers.conf",
    "etc/nexus/nexus.toml": "nexus.toml",
    "etc/nexus/nexus.env": "nexus.env",
}


COMMAND = "usr/local/bin/nexus"


def install(root: Path, *options: str) -> str:
    done = subprocess.run(
        [str(SCRIPT), "--python", sys.executable, *options],
        env={**os.environ, "DESTDIR": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def wheels(module_dir: Path) -> Path:
    """The packages, as the usage says that they are fetched."""
    directory = module_dir / "wheels"
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check",
         "-r", "requirements.txt", ".", "-w", str(directory)],
        cwd=ROOT, check=True, timeout=120,
    )  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def root(module_dir: Path, wheels: Path) -> Path:
    """Nexus, installed; beside it four releases of former times, of which the last was current."""
    root = module_dir / "root"
    for number in range(4):
        old = root / "opt/nexus/releases" / f"0.0.{number}"
        old.mkdir(parents=True)
        os.utime(old, (number, number))
    (root / "opt/nexus/current").symlink_to("releases/0.0.3")
    install(root, "--wheels", str(wheels))
    return root


def listing(root: Path) -> dict[str, tuple[int, float, bytes]]:
    """Everything below, by name: mode, time of the last change, content; without what Python
    keeps of its own."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            path.lstat().st_mtime,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in root.rglob("*")
        if "__pycache__" not in path.parts
    }


def outside_releases(root: Path) -> set[str]:
    names = {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }
    return {name for name in names if not name.startswith("opt/nexus/releases/")}


def test_what_it_lays_down(root: Path):
    assert outside_releases(root) == {*FILES, "opt/nexus/current", COMMAND}
    assert (root / COMMAND).read_bytes() == (UNITS / "nexus").read_bytes()
    assert (root / COMMAND).stat().st_mode & 0o777 == 0o755
    for there, source in FILES.items():
        assert (root / there).read_bytes() == (UNITS / source).read_bytes()
        assert (root / there).stat().st_mode & 0o777 == 0o644
    assert (root / "etc/nexus/credentials").stat().st_mode & 0o777 == 0o700
    releases = sorted(path.name for path in (root / "opt/nexus/releases").iterdir())
    current = (root / "opt/nexus/current").readlink()
    assert releases == ["0.0.2", "0.0.3", current.name], "the last three are kept"


def test_nothing_in_it_names_the_scratch_directory(root: Path):
    release = (root / "opt/nexus/current").resolve()
    for path in (*(release / "bin").iterdir(), release / "pyvenv.cfg"):
        if not path.is_symlink():
            assert str(root).encode() not in path.read_bytes(), path
    shebang = (release / "bin/gunicorn").read_text().splitlines()[0]
    assert shebang == f"#!/opt/nexus/releases/{release.name}/bin/python"


def test_units_and_files_agree(root: Path):
    """Every path that the units name is laid down, or made by systemd."""
    for name in ("nexus.service", "nexus-health.service"):
        unit = Unit(name, {})
        for key in ("ExecStart", "ExecReload"):
            for word in unit.command(key):
                if word.startswith("/"):
                    assert os.path.lexists(root / word[1:]), f"{name}: {key} names {word}"
        (environment_file,) = unit.all("EnvironmentFile")
        assert (root / environment_file.removeprefix("-/")).exists()


def test_settings_in_the_environment_file_are_known(root: Path):
    text = (ROOT / "gunicorn.conf.py").read_text() + (ROOT / "nexus/config/records.py").read_text()
    lines = (root / "etc/nexus/nexus.env").read_text().splitlines()
    names = [
        line[1:].partition("=")[0]
        for line in lines
        if line.startswith("#") and line[1:2].isupper() and "=" in line
    ]
    assert "NEXUS_WORKERS" in names
    for name in names:
        assert f'"{name}"' in text or name == "GUNICORN_CMD_ARGS", name


def test_twice_the_same(root: Path, wheels: Path):
    before = listing(root)
    said = install(root, "--wheels", str(wheels))
    assert listing(root) == before
    assert [line for line in said.splitlines() if not line.startswith("Warning: this Python")] == []


def test_what_was_installed_serves(root: Path, tmp_path: Path, demo):
    """The units' commands with the programs of the release, and nothing of this checkout."""
    release = (root / "opt/nexus/current").resolve()
    paths = {
        "/opt/nexus/current/bin/": f"{release}/bin/python -P {release}/bin/",
        "/opt/nexus/current/gunicorn.conf.py": str(release / "gunicorn.conf.py"),
    }
    paths |= {there: path for there, path in here(tmp_path).items() if not there.startswith("/opt")}
    config = (root / "etc/nexus/nexus.toml").read_text().replace("/run/nexus", paths["/run/nexus"])
    (tmp_path / "etc/nexus.toml").write_text(config + backend_toml(demo))
    (tmp_path / "etc/nexus.env").write_text(
        f"NEXUS_WORKERS=1\nNEXUS_HEALTH_LISTEN=127.0.0.1:{free_port()}\n"
    )
    listener = held_listener()
    with (
        Service(Unit("nexus-health.service", paths), tmp_path) as health,
        Service(Unit("nexus.service", paths), tmp_path, listener=listener) as gateway,
    ):
        health.wait_ready()
        gateway.wait_ready()
        statuses: list[int] = []
        asks = [chat("x", "demo-small")] * 4
        run(
            listener.getsockname()[1],
            asks,
            concurrency=2,
            seen=lambda _, status, __: statuses.append(status),
        )
        assert statuses == [200] * 4
        assert str(release).encode() in Path(f"/proc/{gateway.pid}/cmdline").read_bytes()
        assert gateway.unit.run("ExecReload").stdout == "Reloaded: 1 backend.\n"
        # The command finds the configuration, and the operations port of nexus.env.
        command = (root / COMMAND).read_text().replace("/etc/nexus/", f"{tmp_path}/etc/")
        command = command.replace("/opt/nexus/current/bin/", paths["/opt/nexus/current/bin/"])
        for arguments in ("reload", "keys list"):
            ran = subprocess.run(
                ["sh", "-c", command, "nexus", *arguments.split()],
                cwd="/",
                env=clean_environ(),
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert ran.returncode == 0, (arguments, ran.stdout, ran.stderr)
    listener.close()


def test_another_program_called_nexus_stays(root: Path, wheels: Path):
    command = root / COMMAND
    before = command.read_bytes()
    command.write_text("#!/bin/sh\n")
    assert f"{command} is another program" in install(root, "--wheels", str(wheels))
    assert command.read_text() == "#!/bin/sh\n"
    command.write_bytes(before)


def test_the_operators_files_stay(root: Path, wheels: Path):
    file = root / "etc/nexus/nexus.toml"
    before = file.read_text()
    file.write_text("# mine\n")
    assert f"{file} stays as it is" in install(root, "--wheels", str(wheels))
    assert file.read_text() == "# mine\n"
    file.write_text(before)


def test_a_release_of_before_is_left_by_installing_again(root: Path, wheels: Path):
    """Going back is a link; the installer goes forward again."""
    link = root / "opt/nexus/current"
    new = link.readlink()
    link.unlink()
    link.symlink_to("releases/0.0.3")
    assert f"{link} -> {new}" in install(root, "--wheels", str(wheels))
    assert link.readlink() == new


def test_dry_run_does_nothing(root: Path, tmp_path: Path):
    said = install(tmp_path, "--dry-run")
    assert list(tmp_path.iterdir()) == []
    for there, source in FILES.items():
        assert f"would run: install -D -m 644 {UNITS / source} {tmp_path / there}\n" in said
    before = listing(root)
    assert f"would run: rm -rf {root}/opt/nexus\n" in install(
        root, "--uninstall", "--purge", "--dry-run"
    )
    assert listing(root) == before


@pytest.mark.parametrize("version", PYTHONS)
def test_packages_exist_for_each_python(version: str, tmp_path: Path):
    """pip evaluates markers for the Python that runs it, so they are evaluated here."""
    wanted = tmp_path / "requirements.txt"
    required = [
        Requirement(line)
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    environment = {"python_version": version, "python_full_version": f"{version}.0"}
    wanted.write_text(
        "\n".join(
            f"{one.name}{one.specifier}"
            for one in required
            if one.marker is None or one.marker.evaluate(environment)
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--dry-run", "--ignore-installed", "--no-deps", "--only-binary", ":all:",
         "--python-version", version, "--target", str(tmp_path), "-r", str(wanted)],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_packages_from_the_network_are_taken_by_hash(tmp_path: Path):
    lock = (ROOT / "deploy" / "requirements.lock").read_text()
    locked = re.findall(
        r"^([\w-]+==\S+)(?: ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$",
        lock,
        re.MULTILINE,
    )
    assert len(locked) == lock.count("==")
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = [line.partition(";")[0] for line in lines if "==" in line]
    assert {pin.replace(".", "-", pin.partition("==")[0].count(".")) for pin in pinned} <= {
        pin for pin, _ in locked
    }
    said = install(tmp_path, "--dry-run")
    assert f"--require-hashes -r {ROOT}/deploy/requirements.lock\n" in said
    assert f"--no-deps --no-build-isolation {ROOT}\n" in said


def test_uninstall(root: Path, tmp_path: Path):
    copy = tmp_path / "root"
    shutil.copytree(root, copy, symlinks=True)
    install(copy, "--uninstall")
    assert outside_releases(copy) == {"etc/nexus/nexus.toml", "etc/nexus/nexus.env"}
    assert not (copy / "opt").exists()
    install(copy, "--uninstall")
    install(copy, "--uninstall", "--purge")
    assert not copy.exists() or list(copy.iterdir()) == []


def test_options_that_are_none():
    done = subprocess.run([str(SCRIPT), "--frobnicate"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ")


def test_shellcheck():
    for script in (SCRIPT, UNITS / "nexus", ROOT / "tests/install-packages.sh"):
        done = subprocess.run(
            ["shellcheck", "--shell=sh", str(script)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
