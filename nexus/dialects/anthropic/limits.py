"""The headers in which Anthropic's API tells of limits."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

LIMIT_KINDS: Mapping[str, str] = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "input-tokens",
    "output_tokens": "output-tokens",
}


def limit_headers(
    kind: str, *, limit: int, remaining: int, reset_ns: int, now: float
) -> list[tuple[str, str]]:
    """The headers of one kind of limit; a time as RFC 3339 writes it."""
    full_at = datetime.fromtimestamp(-int(-(now + reset_ns / 1e9) // 1), UTC)
    return [
        (f"anthropic-ratelimit-{kind}-limit", str(limit)),
        (f"anthropic-ratelimit-{kind}-remaining", str(remaining)),
        (f"anthropic-ratelimit-{kind}-reset", full_at.strftime("%Y-%m-%dT%H:%M:%SZ")),
    ]
