"""Count the requests that a killed process had in flight, from the counters that it left.

lost = started - finished - already recorded, from the slot's own counters. This is exact at any
point of the kill.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

from prometheus_client.mmap_dict import mmap_key

from nexus.fleet.slot_lease import SlotLease
from nexus.metrics import families
from nexus.metrics.metrics_file import ReservedFile

log = logging.getLogger("nexus.metrics")


def record_lost(directory: Path, slot: int) -> int:
    """Record the requests that the last holder of `slot` lost; returns how many.

    The caller holds the slot, and no process has its files open for writing. Raises OSError.
    """
    path = directory / f"counter_{slot}.db"
    if not path.exists() or path.stat().st_size == 0:
        return 0
    file = ReservedFile(str(path))
    try:
        sums = dict.fromkeys(
            (families.STARTED.name, families.REQUESTS.name, families.LOST.name), 0.0
        )
        for key, value in file.values().items():
            name = json.loads(key)[1]
            if name in sums:
                sums[name] += value
        started, finished, before = sums.values()
        lost = started - finished - before
        if lost > 0:
            name = families.LOST.name
            key = mmap_key(name.removesuffix("_total"), name, [], [], families.LOST.help)
            file.set(key, before + lost)
        return max(0, int(lost))
    finally:
        file.close()


def recover_slot(slot_lease: SlotLease) -> None:
    """Record what the last holder of a leased slot lost, then zero its row."""
    _record_and_log(slot_lease.metrics, slot_lease.slot)
    slot_lease.claim_row()


def recover_abandoned(slot_lease: SlotLease) -> None:
    """Do the same for all slots whose holder is gone and that have no new one."""
    slot_lease.reclaim_abandoned(partial(_record_and_log, slot_lease.metrics))


def _record_and_log(directory: Path | None, slot: int) -> None:
    if directory is not None and (lost := record_lost(directory, slot)):
        log.warning(
            "requests lost with a process that was killed", extra={"slot": slot, "requests": lost}
        )
