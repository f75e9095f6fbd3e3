"""One stream through the gateway, and the series that it moves."""

from nexus.config import Config
from nexus.config.records import CircuitBreaker, Routing
from tests.corpus import RECORDINGS
from tests.support.figures import moved
from tests.support.load import chat, run

CONFIG = Config(routing=Routing(max_retries=0), circuit_breaker=CircuitBreaker(enabled=False))
NAMES = [f"r{number}" for number in range(len(RECORDINGS))]
MOVED = (
    "nexus_requests_total",
    "nexus_usage_total",
    "nexus_stream_ends_total",
    "nexus_stream_events_total",
    "nexus_tokens_total_sum",
    "nexus_token_details_total",
    "nexus_time_to_first_token_seconds_count",
    "nexus_time_per_output_token_seconds_count",
    "nexus_stream_longest_gap_seconds_count",
)


def stream(gateway, model: str, **more) -> tuple[int, bytes]:
    got: list[tuple[int, bytes]] = []
    run(gateway.port, [chat("x", model, stream=True, **more)], concurrency=1, seen=lambda _, s, c: got.append((s, c)))
    return got[0]


def flat(before, after) -> dict[str, float]:
    return {
        f"{name.removeprefix('nexus_')}{{{','.join(v for _, v in sorted(labels))}}}": change
        for (name, labels), change in moved(before, after, MOVED).items()
    }
