"""The headers in which OpenAI's API tells of limits."""

from __future__ import annotations

from collections.abc import Mapping

LIMIT_KINDS: Mapping[str, str] = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "tokens",
    "output_tokens": "tokens",
}

_NAMES = {
    kind: (
        f"x-ratelimit-limit-{kind}",
        f"x-ratelimit-remaining-{kind}",
        f"x-ratelimit-reset-{kind}",
    )
    for kind in LIMIT_KINDS.values()
}


def limit_headers(
    kind: str,
    *,
    limit: int,
    remaining: int,
    reset_ns: int,
    now: float,  # noqa: ARG001 - other dialects tell a time of day
) -> list[tuple[str, str]]:
    """The headers of one kind of limit."""
    limit_name, remaining_name, reset_name = _NAMES[kind]
    return [
        (limit_name, str(limit)),
        (remaining_name, str(remaining)),
        (reset_name, duration(reset_ns)),
    ]


def duration(ns: int) -> str:
    """A duration as OpenAI's headers write it: `1h2m3s`, `6m0s`, `20ms`."""
    if ns < 1_000_000_000:
        return f"{-(-max(0, ns) // 1_000_000)}ms"
    seconds = -(-ns // 1_000_000_000)
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
