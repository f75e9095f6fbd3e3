"""Streams: how they start, flow, and end."""

from __future__ import annotations

from panels import (
    BACKEND,
    BOTH,
    EVERY,
    HOST,
    WINDOWS,
    Dashboard,
    Panel,
    percentiles,
    quantile,
    rare,
    rate,
)

TTFT = "nexus_time_to_first_token_seconds"
TPOT = "nexus_time_per_output_token_seconds"
SLOW = "job:nexus_first_tokens_slow"

STREAMS = Dashboard(
    uid="nexus-streams",
    title="Nexus / Streams",
    description="When streams start, how fast they are, how they end, and how many tokens they have.",
    runbook="objectives.md#nexusfirsttokenburnsfast",
    rows={
        "First token": [
            Panel(
                title="Time to first token", unit="s",
                description="From a request's headers to the first event with content, a tool call or reasoning.",
                queries=percentiles(TTFT, BOTH),
            ),
            Panel(
                title="Time to first token by model, p95", unit="s",
                description="Long prompts take longer. Compare a model only with itself.",
                queries=[(quantile(0.95, TTFT, BOTH, "model"), "{{model}}")],
            ),
            Panel(
                title="Time to first token by backend, p95", unit="s",
                description="A backend above the others is slow or overloaded.",
                queries=[(quantile(0.95, TTFT, BOTH, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Distribution of first tokens", unit="s", kind="heatmap", width=12,
                description="Number of streams by their time to first token.",
                queries=[(f"sum by (le) (increase({TTFT}_bucket{{{BOTH}}}[{EVERY}]))", "{{le}}")],
            ),
            Panel(
                title="Late streams by window", unit="percentunit", width=12, runbook="objectives.md#nexusfirsttokenburnsfast",
                description="Share with a first token after more than 2.5 s, over windows of several lengths, all hosts. The budget is 5 %.",
                queries=[(f"{SLOW}:ratio_rate{window}", f"over {window}") for window in WINDOWS],
            ),
        ],
        "Active streams": [
            Panel(
                title="Streams active", stacked=True,
                description="Streams that send content to a client now.",
                queries=[(f"sum by (instance) (nexus_streams_active{{{HOST}}})", "{{instance}}")],
            ),
            Panel(
                title="Time per output token", unit="s",
                description="From a stream's first token to its end, for each further token.",
                queries=percentiles(TPOT, BOTH),
            ),
            Panel(
                title="Time per output token by model, p95", unit="s",
                description="Counted by reported tokens, or by events if the backend reported none.",
                queries=[(quantile(0.95, TPOT, BOTH, "model", "by"), "{{model}} by {{by}}")],
            ),
            Panel(
                title="Longest silence", unit="s",
                description="The longest silence of each stream after its first token.",
                queries=percentiles("nexus_stream_longest_gap_seconds", BOTH),
            ),
            Panel(
                title="Longest silence by backend, p95", unit="s",
                description="A backend with pauses swaps, or serves too many requests at once.",
                queries=[(quantile(0.95, "nexus_stream_longest_gap_seconds", BOTH, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Events", unit="cps", stacked=True,
                description="Events with data per second, counted when their stream ends.",
                queries=[(rate("nexus_stream_events_total", BOTH, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Pings", unit="cps",
                description="Pings and comments that clients got because a backend was silent.",
                queries=[(rare("nexus_stream_pings_total", HOST), "all hosts")],
            ),
        ],
        "Ends and usage": [
            Panel(
                title="Ends by reason", unit="cps", stacked=True,
                description="Streams whose content had started. All reasons except complete and client_disconnect are failures.",
                queries=[(rate("nexus_stream_ends_total", BACKEND, "reason"), "{{reason}}")],
            ),
            Panel(
                title="Broken by backend", unit="cps", stacked=True, runbook="backends.md#nexusbackendfails",
                description="Streams that neither completed nor ended by a client's disconnect.",
                queries=[(rate("nexus_stream_ends_total", f'{BACKEND}, reason!~"complete|client_disconnect"', "backend", "reason"), "{{backend}} {{reason}}")],
            ),
            Panel(
                title="Source of usage", unit="reqps", stacked=True,
                description="reported: by the backend. requested: by the backend, because the gateway asked. counted: from events. none: unknown.",
                queries=[(rate("nexus_usage_total", HOST, "source"), "{{source}}")],
            ),
            Panel(
                title="Tokens of a prompt", unit="short",
                description="Requests with known usage.",
                queries=percentiles("nexus_tokens_total", f'{BOTH}, type="prompt"'),
            ),
            Panel(
                title="Tokens of a completion", unit="short",
                description="Requests with known usage.",
                queries=percentiles("nexus_tokens_total", f'{BOTH}, type="completion"'),
            ),
        ],
    },
)  # fmt: skip
