"""Count the requests that a killed process had in flight, from the counters that it left.

lost = started - finished - already recorded, from the slot's own counters. This is exact at any
point of the kill.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from prometheus_client.mmap_dict import mmap_key

from nexus.fleet.slot_lease import SlotLease
from nexus.metrics import families
from nexus.metrics.metrics_file import ReservedFile

log = logging.getLogger("nexus.metrics")


def record_lost(directory: Path, slot: int) -> int:
    """Book the requests that the last holder of `slot` lost; returns how many.

    The caller holds the slot, and nobody has its files open for writing. Raises OSError where they
    cannot be used.
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
    """Take a leased seat over from whoever held its slot before: book what that one lost, then
    zero its row."""
    if slot_lease.metrics is not None and (
        lost := record_lost(slot_lease.metrics, slot_lease.slot)
    ):
        log.warning(
            "requests lost with a process that was killed",
            extra={"slot": slot_lease.slot, "requests": lost},
        )
    slot_lease.claim_row()


def recover_abandoned(slot_lease: SlotLease) -> None:
    """The same for all slots whose holder is gone and that nobody has taken yet."""

    def book(slot: int) -> None:
        assert slot_lease.metrics is not None
        if lost := record_lost(slot_lease.metrics, slot):
            log.warning(
                "requests lost with a process that was killed",
                extra={"slot": slot, "requests": lost},
            )

    slot_lease.reclaim_abandoned(book)
