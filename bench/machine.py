"""What a result was measured on."""

import os
import platform
import statistics
import sysconfig
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def machine() -> str:
    """Processor, cores, kernel and Python, with how it was built, in a line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    cores = len(os.sched_getaffinity(0))
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimized = "with" if "--enable-optimizations" in arguments else "without"
    return (
        f"{model}, {cores} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()} (built {optimized} profile-guided optimization)"
    )


def versions(*packages: str) -> str:
    return ", ".join(f"{package} {version(package)}" for package in packages)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float]) -> str:
    """Median, with the least and the greatest."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}–{max(values):.3g})"
