"""Label values: sanitized names that never collide.

The health process alone assigns them; they travel in the fleet snapshot. A label holds as long as
its name is there. A name that has been gone for long gives its label back: readers then add its
series up under `retired`, and no name ever gets that label again.
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
    """A name as a label value: what is outside `[A-Za-z0-9_]` becomes `_`, and a leading digit
    gets one before it."""
    value = _FORBIDDEN.sub("_", name)
    return f"_{value}" if value[:1].isdigit() else value


def assign(
    known: Mapping[str, str], names: Iterable[str], *, limit: int, retired: Iterable[str] = ()
) -> dict[str, str]:
    """`known` with a label for each of `names` added, in their order.

    The first name gets the plain label; one that would collide, read like a reserved value, or be a
    retired label gets `_` and six hex digits of its SHA-256. Beyond `limit` labels a name gets
    none, and counts as `other`. What is in `known` never changes.
    """
    labels = dict(known)
    taken: set[str] | None = None
    for name in names:
        if name in labels or len(labels) >= limit:
            continue
        if taken is None:
            taken = {*labels.values(), *retired, *RESERVED}
        labels[name] = next(label for label in _candidates(name) if label not in taken)
        taken.add(labels[name])
    return labels


def _candidates(name: str) -> Iterator[str]:
    """The labels that a name can have, in the order of preference; without an end."""
    plain = sanitize(name)
    yield plain
    for turn in count():
        digest = hashlib.sha256(f"{name}{turn or ''}".encode()).hexdigest()
        for digits in range(6, 65):  # six nearly always do
            yield f"{plain}_{digest[:digits]}"


def retire(
    known: Mapping[str, str],
    present: Set[str],
    gone_since: Mapping[str, float],
    *,
    now: float,
    after_s: float,
) -> tuple[dict[str, str], list[str], dict[str, float]]:
    """Take the labels of names that have been gone for `after_s` out of `known`.

    Returns the labels that stay, those that retire, and since when each absent name that keeps its
    label is gone. `now` and `gone_since` are of one clock; a moment in its future counts as now.
    """
    absent = {name: min(gone_since.get(name, now), now) for name in known if name not in present}
    gone = {name for name, since in absent.items() if now - since >= after_s}
    kept = {name: label for name, label in known.items() if name not in gone}
    waiting = {name: since for name, since in absent.items() if name not in gone}
    return kept, [known[name] for name in known if name in gone], waiting
