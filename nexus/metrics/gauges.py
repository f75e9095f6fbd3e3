"""The fleet's gauges in a prometheus_client file, which is replaced as a whole.

In multiprocess mode the library cannot remove a series from a file. A new file never has the series
of a removed backend, and stock readers can read it, too.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from prometheus_client.mmap_dict import mmap_key

from nexus.access.callers import callers_of
from nexus.fleet.records import Backend, Snapshot
from nexus.metrics import access_families, families, labels
from nexus.metrics.family import Family
from nexus.metrics.metrics_file import ReservedFile

FILE = "gauge_max_fleet.db"  # `max`: a mode in which the stock collector adds no `pid` label


def write_fleet_gauges(
    directory: Path,
    snapshot: Snapshot,
    *,
    updated_at: float,
    loaded_at: float,
    last_reload_good: bool,
) -> None:
    """Replace the gauge file in `directory`. Raises OSError if the directory is gone or full.

    `updated_at` and `loaded_at` are in Unix seconds: when the last round of probes ended, and when
    the configuration in use was read.
    """
    aside = directory / f"{FILE}.new"  # not *.db, so that no reader reads it
    aside.unlink(missing_ok=True)
    gauges = ReservedFile(str(aside))
    try:
        samples = [
            *_samples(snapshot, updated_at),
            (families.RELOAD_SUCCESSFUL, [], last_reload_good),
            (families.RELOADED, [], loaded_at),
        ]
        for family, values, number in samples:
            key = mmap_key(family.name, family.name, list(family.labels), values, family.help)
            gauges.set(key, float(number))
    finally:
        gauges.close()
    aside.replace(directory / FILE)


def _samples(snapshot: Snapshot, updated_at: float) -> list[tuple[Family, list[str], float]]:
    backends = snapshot.backends
    healthy = [backend for backend in backends if backend.status == "healthy"]
    samples: list[tuple[Family, list[str], float]] = [
        (families.BACKENDS, [], len(backends)),
        (families.BACKENDS_HEALTHY, [], len(healthy)),
        (
            families.MODELS_AVAILABLE,
            [],
            len({model.name for backend in healthy for model in backend.models}),
        ),
        (families.FLEET_UPDATED, [], updated_at),
    ]
    by_label: dict[str, list[Backend]] = {}
    for backend in backends:
        by_label.setdefault(backend.label, []).append(backend)
    # Several backends may share `other`: it has the worst of their gauges, and no facts.
    for label, members in by_label.items():
        up = all(backend.status == "healthy" for backend in members)
        samples += [
            (families.BACKEND_UP, [label], up),
            (families.BACKEND_DRAINING, [label], all(one.draining for one in members)),
            (families.BACKEND_INFO, _info(label, members), 1),
        ]
    # A model keeps its series while a backend has it, even one that is down: alerts wait for a 0.
    offered = Counter({model.name: 0 for backend in backends for model in backend.models})
    for backend in backends:
        if backend.usable:
            offered.update({model.name for model in backend.models})
    named, limits = snapshot.labels, snapshot.config.metrics
    overflowed = sum(backend.label == labels.OTHER for backend in backends)
    samples += [
        (families.LABELS, ["model"], len(named.models)),
        (families.LABELS, ["backend"], len(named.backends)),
        (families.LABELS_LIMIT, ["model"], limits.max_models),
        (families.LABELS_LIMIT, ["backend"], limits.max_backends),
        (families.LABELS_OVERFLOWED, ["model"], len(named.models_over)),
        (families.LABELS_OVERFLOWED, ["backend"], overflowed),
    ]
    counts: dict[str, int] = {}
    for name, count in offered.items():
        label = named.models.get(name, labels.OTHER)
        counts[label] = min(count, counts.get(label, count))
    samples += [(families.MODEL_BACKENDS, [label], count) for label, count in counts.items()]
    samples += [(families.MODEL_INFO, [label, name], 1) for name, label in named.models.items()]
    return samples + _key_samples(snapshot, now=updated_at)


def _key_samples(snapshot: Snapshot, *, now: float) -> list[tuple[Family, list[str], float]]:
    """The gauges of keys, at `now` in Unix seconds; none without `[auth]`."""
    callers = callers_of(
        snapshot.config, key_labels=snapshot.labels.keys, team_labels=snapshot.labels.teams
    )
    if callers is None:
        return []
    states = dict.fromkeys(("active", "expired", "blocked"), 0)
    samples: list[tuple[Family, list[str], float]] = []
    for caller in callers.by_key.values():
        states[caller.state(now)] += 1
        if caller.key_label != labels.OTHER:
            samples.append(
                (access_families.KEY_INFO, [caller.key_label, caller.name, caller.team_label], 1)
            )
    return samples + [(access_families.KEYS, [state], count) for state, count in states.items()]


def _info(label: str, members: list[Backend]) -> list[str]:
    """The label values of `nexus_backend_info` for the backends that share a label."""
    if len(members) > 1 or label == labels.OTHER:
        return [label, label, "", "", "", ""]
    [backend] = members
    config = backend.config
    zone = config.zone or ("restricted" if backend.restricted else "open")
    return [label, backend.name, config.type, config.url, zone, str(config.tier)]
