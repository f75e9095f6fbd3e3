"""Resources of the host: cores, descriptors, a directory for small files."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import tempfile
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use, by its affinity and its CPU quota; at least 1.

    `root` contains /proc and /sys.
    """
    quota = cpu_quota(root)
    cores = len(os.sched_getaffinity(0))
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The lowest quota of the process's control group and its parents, in cores; None without one.

    It reads both versions of control groups (`cgroups(7)`). In a container the group's path may be
    that of the host, which does not exist there: the top of the mount is then the container's.
    """
    quotas: list[float] = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top / path.lstrip("/")
        for directory in (group, *group.parents):
            quota = _quota_v1(directory) if controllers else _quota_v2(directory)
            if quota is not None:
                quotas.append(quota)
            if directory == top:
                break
    return min(quotas, default=None)


def _quota_v2(directory: Path) -> float | None:
    for line in _lines(directory / "cpu.max"):
        quota, period = line.split()
        return None if quota == "max" else int(quota) / int(period)
    return None


def _quota_v1(directory: Path) -> float | None:
    quota, period = (_lines(directory / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def scratch_directory(*candidates: str) -> str | None:
    """The first of these directories that is writable; None for the system's default."""
    for directory in filter(None, candidates):
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=directory):
            return directory
    return None


def raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors to the hard one; it is low only for old programs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def descriptor_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft
