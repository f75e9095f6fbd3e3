"""How many series a configuration can have at most: the product of what each label can be."""

from __future__ import annotations

from nexus.config import Config
from nexus.errors import ERROR_TYPES, STREAM_ENDS, status_labels
from nexus.fleet.load_table import SLOTS
from nexus.metrics.families import EXCLUSION_REASONS, FAMILIES, Family

_ENDPOINTS, _TOKEN_TYPES, _KINDS, _SOURCES, _PHASES, _BY = 3, 2, 2, 4, 2, 2


def bound(config: Config) -> dict[str, int]:
    """Family → the most series that it can have with this configuration, whatever clients and backends do."""
    backends = sum(not backend.provider.unsupported for backend in config.backends)
    named = min(backends, config.metrics.max_backends)
    models = config.metrics.max_models + 3  # unknown, other, retired
    values = {
        "model": models,
        "from_model": models,
        "to_model": models,
        "backend": named + 3,  # none, other, retired
        "status": len(status_labels()),
        "error_type": len(ERROR_TYPES),
        "outcome": len(ERROR_TYPES) + 1,
        "endpoint": _ENDPOINTS,
        "reason": max(
            len(STREAM_ENDS), len(EXCLUSION_REASONS)
        ),  # of the families that have it, the one with most
        "source": _SOURCES,
        "phase": _PHASES,
        "by": _BY,
        "type": _TOKEN_TYPES,
        "kind": _KINDS,
        "version": 1,
    }
    return {
        family.name: _of_family(family, values, named, config.metrics.max_models)
        for family in FAMILIES
    }


def _of_family(family: Family, values: dict[str, int], backends: int, models: int) -> int:
    if "slot" in family.labels:
        return SLOTS
    if "name" in family.labels:  # one for each name, the other labels follow from it
        return (
            models if "model" in family.labels else backends + 1
        )  # one for all that share `other`
    series = 1
    for label in family.labels:
        series *= values[label]
    return series * (len(family.buckets) + 3 if family.kind == "histogram" else 1)
