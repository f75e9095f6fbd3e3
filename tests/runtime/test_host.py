"""How many cores a process may use, read from control groups as kernels and containers show
them."""

import os
from pathlib import Path

import pytest

from nexus.runtime.host import cpu_quota, usable_cores
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend_toml

AFFINITY = len(os.sched_getaffinity(0))


def root(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return directory


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu"
V1_LINES = "5:cpu,cpuacct:/{path}\n4:memory:/{path}\n1:name=systemd:/{path}\n"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/b/cpu.max": "150000 100000\n"}, 1.5),
        # The slice above has less.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                f"{V2}/a/b/cpu.max": "max 100000\n",
                f"{V2}/a/cpu.max": "25000 100000",
            },
            0.25,
        ),
        # The path is the host's; the container sees its own group at the top of the mount.
        ({"proc/self/cgroup": "0::/docker/f00\n", f"{V2}/cpu.max": "200000 100000\n"}, 2.0),
        ({"proc/self/cgroup": V1_LINES.format(path="")}, None),
        (
            {
                "proc/self/cgroup": V1_LINES.format(path=""),
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        (
            {
                "proc/self/cgroup": V1_LINES.format(path="d/x"),
                f"{V1}/cpu.cfs_quota_us": "50000\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": V1_LINES.format(path="d/x"),
                f"{V1}/d/x/cpu.cfs_quota_us": "30000\n",
                f"{V1}/d/x/cpu.cfs_period_us": "10000\n",
            },
            3.0,
        ),
    ],
)
def test_quota(tmp_path, files, quota):
    made = root(tmp_path, files)
    assert cpu_quota(made) == quota
    expected = (
        AFFINITY
        if quota is None
        else {0.25: 1, 0.5: 1, 1.5: min(2, AFFINITY)}.get(quota, min(int(quota), AFFINITY))
    )
    assert usable_cores(made) == expected


@pytest.mark.e2e
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_as_many_workers_as_the_quota_allows(tmp_path):
    """Half a core, in the files of both versions of control groups."""
    script = (
        f"mount -t tmpfs none /{V2} && mkdir /{V1} && echo 50000 100000 > /{V2}/cpu.max && "
        f'echo 50000 > /{V1}/cpu.cfs_quota_us && echo 100000 > /{V1}/cpu.cfs_period_us && exec "$@"'
    )
    with (
        Demo(tmp_path) as demo,
        Gateway(
            tmp_path,
            backend_toml(demo),
            workers=0,
            prefix=["unshare", "-m", "sh", "-c", script, "sh"],
        ) as gateway,
    ):
        until(lambda: gateway.lines("worker ready"))
        assert len(gateway.worker_pids()) == 1


def test_this_host_can_be_read():
    assert 1 <= usable_cores() <= AFFINITY
