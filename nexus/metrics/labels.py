"""Label values: sanitized names that never collide.

Only the health process assigns them; they are part of the fleet snapshot. A name keeps its label
while it exists. If a name has been absent for long, its label is retired: readers add its series up
under `retired`, and no name gets that label again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import count

NONE = "none"
UNKNOWN = "unknown"
OTHER = "other"
RETIRED = "retired"
RESERVED = frozenset({NONE, UNKNOWN, OTHER, RETIRED})

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_]")


def sanitize(name: str) -> str:
    """A name as a label value: `_` replaces characters outside of `[A-Za-z0-9_]`, and precedes a
    leading digit."""
    value = _FORBIDDEN.sub("_", name)
    return f"_{value}" if value[:1].isdigit() else value


def assign(
    known: Mapping[str, str], names: Iterable[str], *, limit: int, retired: Iterable[str] = ()
) -> dict[str, str]:
    """`known`, with labels for those of `names` that have none.

    The first name gets the plain label. If that is in use, reserved, or retired, the name gets `_`
    and six hex digits of its SHA-256. Beyond `limit` labels a name gets none and counts as `other`.
    Labels in `known` never change.
    """
    labels = dict(known)
    used: set[str] | None = None
    for name in names:
        if name in labels or len(labels) >= limit:
            continue
        if used is None:
            used = {*labels.values(), *retired, *RESERVED}
        labels[name] = next(label for label in _candidates(name) if label not in used)
        used.add(labels[name])
    return labels


def _candidates(name: str) -> Iterator[str]:
    """An endless series of labels for a name, in the order of preference."""
    plain = sanitize(name)
    yield plain
    for attempt in count():
        digest = hashlib.sha256(f"{name}{attempt or ''}".encode()).hexdigest()
        for digits in range(6, 65):  # six are nearly always enough
            yield f"{plain}_{digest[:digits]}"


def retire(
    known: Mapping[str, str],
    present: Set[str],
    gone_since: Mapping[str, float],
    *,
    now: float,
    after_s: float,
) -> tuple[dict[str, str], list[str], dict[str, float]]:
    """Remove the labels of names that have been absent for `after_s` from `known`.

    Returns the remaining labels, the retired ones, and since when each absent name with a label is
    absent. `now` and `gone_since` are of the same clock; a time in its future counts as now.
    """
    absent = {name: min(gone_since.get(name, now), now) for name in known if name not in present}
    gone = {name for name, since in absent.items() if now - since >= after_s}
    kept = {name: label for name, label in known.items() if name not in gone}
    waiting = {name: since for name, since in absent.items() if name not in gone}
    return kept, [known[name] for name in known if name in gone], waiting
