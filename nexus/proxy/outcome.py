"""Makes the outcome of a request when it ends, and writes its line in the log."""

from __future__ import annotations

import logging

from nexus.access.prices import usd
from nexus.dialects.base import StreamReader, Usage
from nexus.errors import Fault
from nexus.fleet.history import LONGEST_NAME
from nexus.fleet.outcome import Outcome, StreamOutcome
from nexus.runtime.log import info

log = logging.getLogger("nexus.proxy")


def stream_outcome(
    stream: StreamReader, fault: Fault | None, usage: Usage, *, started: float, counted: bool
) -> StreamOutcome:
    """The outcome of a stream that has ended.

    `started` is when the request's first byte came. `counted`: its tokens are its events.
    """
    tokens = usage.completion_tokens
    ttft_s = tpot_s = None
    if first_at := stream.first_token_at:
        ttft_s = first_at - started
        if tokens is not None and tokens > 1:
            tpot_s = (stream.last_at - first_at) / (tokens - 1)
    return StreamOutcome(
        end=(fault.stream_end or "complete") if fault else "complete",
        events=stream.events,
        longest_gap_s=stream.longest_gap_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        tpot_by="events" if counted else "tokens",
    )


def log_outcome(outcome: Outcome) -> None:
    """Write the one line that each request has in the log."""
    if not log.isEnabledFor(logging.INFO):
        return
    stream = outcome.stream
    caller = {} if outcome.key is None else {"key": outcome.key, "team": outcome.team}
    charge = outcome.charge
    cost = {} if charge is None or charge.unpriced else {"cost_usd": usd(charge.total)}
    info(
        log,
        "request",
        {
            "id": outcome.request_id,
            **caller,
            "endpoint": outcome.endpoint,
            "model": outcome.model[:LONGEST_NAME] or None,
            "backend": outcome.backend,
            "status": outcome.status,
            "duration_ms": round(outcome.duration_s * 1000, 1),
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "cached_tokens": outcome.cached_tokens,
            "reasoning_tokens": outcome.reasoning_tokens,
            "cache_write_tokens": outcome.cache_write_tokens,
            "usage": outcome.usage,
            **cost,
            "attempts": outcome.attempts,
            "stream": stream is not None,
            "ttft_ms": round(stream.ttft_s * 1000, 1) if stream and stream.ttft_s else None,
            "tokens_per_s": round(1 / stream.tpot_s, 1) if stream and stream.tpot_s else None,
            "end": stream.end if stream else None,
            "why": outcome.reason,
            "fault": outcome.fault.code if outcome.fault else None,
        },
    )
