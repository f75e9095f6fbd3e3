"""Streams: how they begin, go and end."""

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
    rate,
)

TTFT = "nexus_time_to_first_token_seconds"
TPOT = "nexus_time_per_output_token_seconds"
SLOW = "job:nexus_first_tokens_slow"

STREAMS = Dashboard(
    uid="nexus-streams",
    title="Nexus / Streams",
    description="When streams begin, how fast they go, how they end, and what is known of their tokens.",
    runbook="objectives.md#nexusfirsttokenburnsfast",
    rows={
        "First token": [
            Panel(
                title="Time to first token", unit="s",
                description="From a request's head to the first event with content, a tool call or reasoning.",
                queries=percentiles(TTFT, BOTH),
            ),
            Panel(
                title="Time to first token by model, p95", unit="s",
                description="Long prompts take long; compare a model with itself.",
                queries=[(quantile(0.95, TTFT, BOTH, "model"), "{{model}}")],
            ),
            Panel(
                title="Time to first token by backend, p95", unit="s",
                description="One backend above the others is slow or full.",
                queries=[(quantile(0.95, TTFT, BOTH, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Where first tokens lie", unit="s", kind="heatmap", width=12,
                description="How many streams had their first token after how long.",
                queries=[(f"sum by (le) (increase({TTFT}_bucket{{{BOTH}}}[{EVERY}]))", "{{le}}")],
            ),
            Panel(
                title="Streams that begin late, by window", unit="percentunit", width=12, runbook="objectives.md#nexusfirsttokenburnsfast",
                description="Share with a first token after more than 2.5 s, over windows of several lengths, all hosts; 5 % is the budget.",
                queries=[(f"{SLOW}:ratio_rate{window}", f"over {window}") for window in WINDOWS],
            ),
        ],
        "While they go": [
            Panel(
                title="Streams active", stacked=True,
                description="Streams whose content goes to a client now.",
                queries=[(f"sum by (instance) (nexus_streams_active{{{HOST}}})", "{{instance}}")],
            ),
            Panel(
                title="Time per output token", unit="s",
                description="From a stream's first token to its end, for each further token.",
                queries=percentiles(TPOT, BOTH),
            ),
            Panel(
                title="Time per output token by model, p95", unit="s",
                description="By the tokens that the backend reported, or by the events if it reported none.",
                queries=[(quantile(0.95, TPOT, BOTH, "model", "by"), "{{model}} by {{by}}")],
            ),
            Panel(
                title="Longest silence", unit="s",
                description="The longest silence of each stream after its first token.",
                queries=percentiles("nexus_stream_longest_gap_seconds", BOTH),
            ),
            Panel(
                title="Longest silence by backend, p95", unit="s",
                description="A backend that pauses: it swaps, or works on too many at once.",
                queries=[(quantile(0.95, "nexus_stream_longest_gap_seconds", BOTH, "backend"), "{{backend}}")],
            ),
            Panel(
                title="Events", unit="cps", stacked=True,
                description="Events with data in streams that have ended, a second.",
                queries=[(rate("nexus_stream_events_total", BOTH, "backend"), "{{backend}}")],
            ),
        ],
        "How they end": [
            Panel(
                title="Ends by reason", unit="cps", stacked=True,
                description="Of streams whose content had begun; all but complete and client_disconnect are failures.",
                queries=[(rate("nexus_stream_ends_total", BACKEND, "reason"), "{{reason}}")],
            ),
            Panel(
                title="Broken by backend", unit="cps", stacked=True, runbook="backends.md#nexusbackendfails",
                description="Streams that neither ended well nor were left by their client.",
                queries=[(rate("nexus_stream_ends_total", f'{BACKEND}, reason!~"complete|client_disconnect"', "backend", "reason"), "{{backend}} {{reason}}")],
            ),
            Panel(
                title="Where usage is known from", unit="reqps", stacked=True,
                description="Told by the backend as asked (reported) or as the gateway asked (requested), counted from events, or none.",
                queries=[(rate("nexus_usage_total", HOST, "source"), "{{source}}")],
            ),
            Panel(
                title="Tokens of a prompt", unit="short",
                description="Of requests whose usage is known.",
                queries=percentiles("nexus_tokens_total", f'{BOTH}, type="prompt"'),
            ),
            Panel(
                title="Tokens of a completion", unit="short",
                description="Of requests whose usage is known.",
                queries=percentiles("nexus_tokens_total", f'{BOTH}, type="completion"'),
            ),
        ],
    },
)  # fmt: skip
