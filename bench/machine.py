"""What a result was measured on."""

import os
import platform
import statistics
import subprocess
import sys
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
    return f"{model}, {cores} cores, Linux {platform.release()}, {python_build(sys.executable)}"


_BUILD = """
import platform, sys, sysconfig
of = lambda key: sysconfig.get_config_var(key) or ""
optimized = "--enable-optimizations" in of("CONFIG_ARGS")
package = sys.base_prefix == "/usr"
print(platform.python_version(), "as the distribution packages it" if package else
      f"built {'with' if optimized else 'without'} profile-guided optimization", sep="|")
"""


def python_build(python: Path | str) -> str:
    """A Python's version and how it was built, asked of that Python."""
    version, how = subprocess.run(
        [str(python), "-c", _BUILD], capture_output=True, text=True, check=True
    ).stdout.strip().split("|")  # fmt: skip
    return f"Python {version} ({how})"


def versions(*packages: str) -> str:
    return ", ".join(f"{package} {version(package)}" for package in packages)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float]) -> str:
    """Median, with the least and the greatest."""
    return f"{statistics.median(values):.3g} ({min(values):.3g}–{max(values):.3g})"
