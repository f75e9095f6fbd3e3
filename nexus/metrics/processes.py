"""Resources of a process, from the kernel."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGESIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def memory_and_cpu(pid: int) -> tuple[int, float] | None:
    """Resident memory in bytes and processor time in seconds (`proc(5)`); None if it is gone."""
    try:
        memory = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
        # The name, in brackets, may contain anything; the fields after it do not.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (OSError, IndexError):
        return None
    return memory, (int(fields[11]) + int(fields[12])) / _TICKS
