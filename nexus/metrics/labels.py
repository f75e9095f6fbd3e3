"""Label values: sanitized names that never collide and never change while the gateway lives.

The health process alone assigns them; they travel in the fleet snapshot.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

NONE = "none"
UNKNOWN = "unknown"
OTHER = "other"
RESERVED = frozenset({NONE, UNKNOWN, OTHER})

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_]")


def sanitize(name: str) -> str:
    """A name as a label value: what is outside `[A-Za-z0-9_]` becomes `_`, and a leading digit gets one before it."""
    value = _FORBIDDEN.sub("_", name)
    return f"_{value}" if value[:1].isdigit() else value


def assign(known: Mapping[str, str], names: Iterable[str], *, limit: int) -> dict[str, str]:
    """`known` with a label for each of `names` added, in their order.

    The first name gets the plain label; one that would collide, or read like a reserved value, gets `_` and six hex
    digits of its SHA-256. Beyond `limit` labels a name gets none, and counts as `other`. What is in `known` never
    changes.
    """
    labels = dict(known)
    taken = set(labels.values()) | RESERVED
    for name in names:
        if name in labels or len(labels) >= limit:
            continue
        label = sanitize(name)
        digest = hashlib.sha256(name.encode()).hexdigest()
        digits = 6
        while label in taken:  # six digits nearly always do; more, should two names share them
            label = f"{sanitize(name)}_{digest[:digits]}"
            digits += 1
        labels[name] = label
        taken.add(label)
    return labels
