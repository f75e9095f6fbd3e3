"""The container file and the Kubernetes manifests: no builder and no cluster runs here, so
linter and schemas read them, the facts that matter are held against the program, and their
commands are run."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from nexus.config import Config, load
from nexus.config.records import ENVIRONMENT
from tests.support.load import chat, run
from tests.support.metrics import scrape
from tests.support.polling import until
from tests.support.processes import ROOT, Demo, Process, backend_toml, clean_environ, free_port

pytestmark = pytest.mark.e2e

CONTAINERFILE = ROOT / "deploy" / "container" / "Containerfile"
MANIFESTS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in (ROOT / "deploy" / "kubernetes").glob("*.yaml")
}


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions, those of all stages in order."""
    text = re.sub(
        r"\\\n", " ", re.sub(r"^\s*#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE)
    )
    return [(line.split()[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def last(name: str) -> str:
    return [value for key, value in instructions() if key == name][-1]


def image_environ() -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(last("ENV")))


# The container


def test_hadolint():
    done = subprocess.run(
        [f"{sys.prefix}/bin/hadolint", str(CONTAINERFILE)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_container_facts():
    keys = [key for key, _ in instructions()]
    assert keys.count("FROM") == 2
    second = len(keys) - keys[::-1].index("FROM")
    assert "USER" in keys[second:]
    assert all(int(number) > 0 for number in last("USER").split(":")), "by number, and not root"
    assert keys[second:].count("COPY") == 1, (
        "nothing but the environment comes from the first stage"
    )
    for key, value in instructions():
        if key == "COPY" and "--from" not in value:
            *sources, _ = value.split()
            assert all((ROOT / source).exists() for source in sources), value
    assert json.loads(last("CMD")) == ["nexus", "serve"]


@pytest.fixture
def contained(tmp_path: Path, demo: Demo) -> Iterator[tuple[int, Process]]:
    """The image's command with its environment, on a file system that is read-only but for the
    run directory."""
    port = free_port()
    (tmp_path / "run").mkdir()
    (tmp_path / "nexus.toml").write_text(backend_toml(demo))
    given = image_environ() | {
        "PATH": f"{sys.prefix}/bin:{image_environ()['PATH']}",
        "NEXUS_HOST": "127.0.0.1",
    }
    assert (given["NEXUS_CONFIG"], given["NEXUS_RUN_DIR"]) == (
        "/etc/nexus/nexus.toml",
        "/run/nexus/gateway",
    )
    given |= {
        "NEXUS_CONFIG": str(tmp_path / "nexus.toml"),
        "NEXUS_RUN_DIR": str(tmp_path / "run" / "gateway"),
        "NEXUS_HEALTH_LISTEN": f"127.0.0.1:{free_port()}",
        "NEXUS_PORT": str(port),
        "NEXUS_WORKERS": "2",
    }
    inside = (
        f'mount -t tmpfs -o mode=1777 none "{tmp_path}/run" && mount -o remount,bind,ro / '
        '&& ! touch /nexus-was-here 2>/dev/null && exec "$@"'
    )
    command = ["unshare", "--mount", "sh", "-c", inside, "sh", *json.loads(last("CMD"))]
    with Process(command, log=tmp_path / "container.log", environ=given, cwd=Path("/")) as process:
        until(lambda: b"is ready, in front of" in process.log.read_bytes(), within_s=20)
        yield port, process


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_read_only_root_is_enough(contained: tuple[int, Process]):
    port, process = contained
    statuses: list[int] = []
    asks = [chat("x", "demo-small", stream=True)] * 10
    run(port, asks, concurrency=4, seen=lambda _, status, __: statuses.append(status))
    assert statuses == [200] * 10
    found = until(
        lambda: (s := scrape(f"http://127.0.0.1:{port}")).total("nexus_requests_total") == 10 and s
    )
    assert found.value("nexus_run_directory_usable") == 1
    assert '"level": "error"' not in process.output()
    check = json.loads(re.search(r"CMD (\[.*\])", last("HEALTHCHECK"))[1])
    assert check[0] == "python"
    command = [sys.executable, *check[1:]]
    assert subprocess.run(command, env=clean_environ(NEXUS_PORT=str(port))).returncode == 0
    process.stop()
    assert (
        subprocess.run(
            command, env=clean_environ(NEXUS_PORT=str(port)), stderr=subprocess.DEVNULL
        ).returncode
        != 0
    )


# Kubernetes


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("name", sorted(MANIFESTS.keys() - {"servicemonitor"}))
def test_schema(name: str, version: str):
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_the_schema_finds_a_misspelt_key():
    wrong = {**MANIFESTS["poddisruptionbudget"], "spec": {"maxUnavailible": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


POD: dict[str, Any] = MANIFESTS["deployment"]["spec"]["template"]["spec"]
CONTAINERS: dict[str, dict[str, Any]] = {
    container["name"]: container for container in POD["containers"]
}


def test_a_service_sets_no_setting():
    """Kubernetes sets NAME_PORT and the like for each Service, unless links are off."""
    variable = f"{MANIFESTS['service']['metadata']['name'].upper()}_PORT"
    assert variable in ENVIRONMENT
    assert POD["enableServiceLinks"] is False


def ports() -> dict[str, int]:
    return {port["name"]: port["containerPort"] for c in CONTAINERS.values() for port in c["ports"]}


def test_selectors_and_ports_meet():
    """What no schema sees, and the ServiceMonitor, whose schema belongs to the operator."""
    labels = MANIFESTS["deployment"]["spec"]["template"]["metadata"]["labels"]
    service, monitor = MANIFESTS["service"], MANIFESTS["servicemonitor"]
    assert service["spec"]["selector"] == labels
    assert MANIFESTS["deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["poddisruptionbudget"]["spec"]["selector"]["matchLabels"] == labels
    assert (
        {port["targetPort"] for port in service["spec"]["ports"]}
        == set(ports())
        == {"http", "operations"}
    )
    assert (monitor["apiVersion"], monitor["kind"]) == (
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
    )
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    )
    assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == ["operations"], (
        "one of the two"
    )
    assert {endpoint["path"] for endpoint in monitor["spec"]["endpoints"]} == {"/metrics"}


def test_the_two_containers_share_what_they_must():
    gateway, health = CONTAINERS["gateway"], CONTAINERS["health"]
    assert POD["shareProcessNamespace"] is True
    assert gateway["image"] == health["image"]
    assert gateway["volumeMounts"] == health["volumeMounts"]
    run_dirs = {
        variable["value"]
        for c in (gateway, health)
        for variable in c["env"]
        if variable["name"] == "NEXUS_RUN_DIR"
    }
    mount = next(mount["mountPath"] for mount in gateway["volumeMounts"] if mount["name"] == "run")
    assert run_dirs == {f"{mount}/gateway"}, (
        "a directory that the gateway makes: the mount is root's"
    )
    volume = next(volume for volume in POD["volumes"] if volume["name"] == "run")
    assert volume["emptyDir"]["medium"] == "Memory"
    assert "/tmp" in {mount["mountPath"] for mount in gateway["volumeMounts"]}, "for uploads"
    for container in (gateway, health):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    user = int(last("USER").split(":")[0])
    assert (POD["securityContext"]["runAsNonRoot"], POD["securityContext"]["runAsUser"]) == (
        True,
        user,
    )


def test_the_end_of_a_pod_has_time():
    gateway = CONTAINERS["gateway"]
    _, pause_s = gateway["lifecycle"]["preStop"]["exec"]["command"]
    environ = {variable["name"]: variable["value"] for variable in gateway["env"]}
    grace_s = int(environ["NEXUS_GRACEFUL_TIMEOUT"])
    assert POD["terminationGracePeriodSeconds"] >= int(pause_s) + 2 * grace_s
    probe = gateway["readinessProbe"]
    assert int(pause_s) > probe["periodSeconds"] * probe["failureThreshold"], (
        "the Service has noticed by then"
    )
    assert grace_s == Config().server.graceful_timeout_seconds


def test_the_config_map_is_a_configuration(tmp_path: Path):
    file = tmp_path / "nexus.toml"
    file.write_text(MANIFESTS["configmap"]["data"]["nexus.toml"])
    loaded = load(file, environ={})
    assert loaded.warnings == [], "keys can be made while it runs"
    assert len(loaded.config.backends) == 1


def test_the_pods_commands_serve(tmp_path: Path, demo: Demo):
    """Both containers' commands and environment, with the probes and the reload that the
    manifests tell of."""
    served, operations = free_port(), free_port()
    (tmp_path / "nexus.toml").write_text(backend_toml(demo))
    paths = {
        "/opt/nexus/gunicorn.conf.py": str(ROOT / "gunicorn.conf.py"),
        "/etc/nexus": str(tmp_path),
        "/run/nexus": str(tmp_path / "run"),
        "/run/secrets/nexus": str(tmp_path / "keys"),
        "0.0.0.0:9464": f"127.0.0.1:{operations}",
    }
    (tmp_path / "run").mkdir()

    def placed(text: str) -> str:
        for there, path in paths.items():
            text = text.replace(there, path)
        return text

    def environ(container: dict[str, Any]) -> dict[str, str]:
        image = {key: placed(value) for key, value in image_environ().items() if key != "PATH"}
        pod = {variable["name"]: placed(variable["value"]) for variable in container["env"]}
        return clean_environ(**image) | pod | {"NEXUS_HOST": "127.0.0.1", "NEXUS_PORT": str(served)}

    def url(probe: dict[str, Any]) -> str:
        at = {"http": served, "operations": operations}[probe["httpGet"]["port"]]
        return f"http://127.0.0.1:{at}{probe['httpGet']['path']}"

    with ExitStack() as stack:
        for name, container in CONTAINERS.items():
            command = [
                f"{sys.prefix}/bin/{container['command'][0]}",
                *map(placed, container["command"][1:]),
            ]
            log = tmp_path / f"{name}.log"
            stack.enter_context(Process(command, log=log, environ=environ(container), cwd=tmp_path))
        probes = [
            c[key]
            for c in CONTAINERS.values()
            for key in ("startupProbe", "livenessProbe", "readinessProbe")
            if key in c
        ]
        assert len(probes) == 4
        for probe in probes:
            until(
                lambda probe=probe: (
                    subprocess.run(
                        ["curl", "-sf", url(probe)], stdout=subprocess.DEVNULL
                    ).returncode
                    == 0
                )
            )
        done = subprocess.run(
            [f"{sys.prefix}/bin/nexus", "reload"],
            env=environ(CONTAINERS["health"]),
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (0, "Reloaded: 1 backend.\n"), done.stderr
