"""Complete the counters that a killed process left.

The requests that it had in flight are lost: started - finished - already recorded, from the slot's
own counters. This is exact at any point of the kill.

A cost is counted in the slot's usage, by backend, and by key, in this order. If the process was
killed in between, the missing part is added, under the names `none` and `unknown`. So the sums are
the same to the nano-dollar.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

from prometheus_client.mmap_dict import mmap_key

from nexus.access.prices import TYPES
from nexus.fleet.slot_lease import SlotLease
from nexus.metrics import cost_families, families
from nexus.metrics.labels import NONE, UNKNOWN
from nexus.metrics.metrics_file import ReservedFile
from nexus.metrics.store import counter_key

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


def complete_costs(directory: Path, usage: Path, slot: int) -> int:
    """Add what a slot's costs by backend and by key lack; returns how many nano-dollars.

    The caller holds the slot, and no process has its files open for writing. Raises OSError.
    """
    paths = [place / f"counter_{slot}.db" for place in (usage, directory)]
    if not all(path.exists() and path.stat().st_size for path in paths):
        return 0
    used, counted = (ReservedFile(str(path)) for path in paths)
    try:
        most = sum(
            value for key, value in used.values().items() if json.loads(key)[2]["amount"] == "cost"
        )
        added = 0.0
        for family, labels in (
            (cost_families.COST, (NONE, UNKNOWN, TYPES[0], "delivered")),
            (cost_families.KEY_COST, (UNKNOWN, NONE)),
        ):
            values = counted.values()
            total = sum(
                value
                for key, value in values.items()
                if (parsed := json.loads(key))[1] == family.stored_name
                and parsed[2].get("outcome") != "retried"
            )
            if (missing := most - total) > 0:
                key = counter_key(family, labels)
                counted.set(key, values.get(key, 0.0) + missing)
                added += missing
            most = max(most, total)  # usage that could not be written must not hide the rest
        return round(added)
    finally:
        used.close()
        counted.close()


def recover_slot(slot_lease: SlotLease) -> None:
    """Record what the last holder of a leased slot lost, then zero its row."""
    _record_and_log(slot_lease, slot_lease.slot)
    slot_lease.claim_row()


def recover_abandoned(slot_lease: SlotLease) -> None:
    """Do the same for all slots whose holder is gone and that have no new one."""
    slot_lease.reclaim_abandoned(partial(_record_and_log, slot_lease))


def _record_and_log(slot_lease: SlotLease, slot: int) -> None:
    if (generation := slot_lease.generation) is None:
        return
    complete_costs(generation.metrics, generation.usage, slot)
    if lost := record_lost(generation.metrics, slot):
        log.warning(
            "requests lost with a process that was killed", extra={"slot": slot, "requests": lost}
        )
