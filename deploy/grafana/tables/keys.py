"""Clients' keys: their usage and refusals."""

from __future__ import annotations

from panels import EVERY, HOST, Dashboard, Panel, rate

_NAMED = "* on (key) group_left (name) max by (key, name) (nexus_key_info)"
"""Adds a key's name to an expression by key."""

KEYS = Dashboard(
    uid="nexus-keys",
    title="Nexus / Keys",
    description="Requests, tokens, and refusals by key and by team, and limits. Empty without [auth] and [[limits]].",
    runbook="processes.md",
    variables=("instance",),
    rows={
        "Use": [
            Panel(
                title="Keys",
                kind="stat",
                description="Keys by state; the highest count of any host.",
                queries=[(f"max by (state) (nexus_keys{{{HOST}}})", "{{state}}")],
            ),
            Panel(
                title="Requests by team",
                unit="reqps",
                stacked=True,
                description="Finished requests; none: keys without a team.",
                queries=[(rate("nexus_team_requests_total", HOST, "team"), "{{team}}")],
            ),
            Panel(
                title="Requests by key",
                unit="reqps",
                description="The ten keys with the most requests.",
                queries=[(f"topk(10, {rate('nexus_key_requests_total', HOST, 'key')})", "{{key}}")],
            ),
            Panel(
                title="Tokens by key",
                description="Tokens per second of the ten keys with the most, by id and name.",
                queries=[
                    (
                        f"topk(10, {rate('nexus_key_tokens_total', HOST, 'key')} {_NAMED})",
                        "{{key}} {{name}}",
                    )
                ],
            ),
        ],
        "Refused": [
            Panel(
                title="Refusals by reason",
                stacked=True,
                description="Requests refused because of their key, within the step.",
                queries=[
                    (
                        f"sum by (reason) (increase(nexus_key_refusals_total{{{HOST}}}[{EVERY}]))",
                        "{{reason}}",
                    )
                ],
            ),
            Panel(
                title="Limits with the least left",
                description="The share that is left of the ten limits that are closest to their end.",
                unit="percentunit",
                queries=[
                    (
                        f"bottomk(10, min by (limit, subject, dimension) (nexus_limit_level{{{HOST}}}))",
                        "{{limit}} {{subject}} {{dimension}}",
                    )
                ],
            ),
            Panel(
                title="Refusals by limit",
                description="Requests that a limit refused, within the step.",
                queries=[
                    (
                        f"sum by (limit, dimension) (increase(nexus_limit_refusals_total{{{HOST}}}[{EVERY}]))",
                        "{{limit}} {{dimension}}",
                    )
                ],
            ),
            Panel(
                title="Shadow refusals",
                description="What limits with shadow = true would have refused, within the step.",
                queries=[
                    (
                        f"sum by (limit, dimension) (increase(nexus_limit_shadow_refusals_total{{{HOST}}}[{EVERY}]))",
                        "{{limit}} {{dimension}}",
                    )
                ],
            ),
            Panel(
                title="Unused reserved tokens",
                description="Reserved tokens per second that requests did not use, by limit.",
                queries=[(rate("nexus_limit_returned_tokens_total", HOST, "limit"), "{{limit}}")],
            ),
            Panel(
                title="Tokens beyond the reservation",
                description="Tokens per second charged beyond the reservation, by limit.",
                queries=[(rate("nexus_limit_overrun_tokens_total", HOST, "limit"), "{{limit}}")],
            ),
            Panel(
                title="Limits not enforced",
                description="Requests for which the table of usage was locked or full, within the step.",
                queries=[
                    (f"sum (increase(nexus_limit_lock_misses_total{{{HOST}}}[{EVERY}]))", "locked"),
                    (f"sum (increase(nexus_limit_untracked_total{{{HOST}}}[{EVERY}]))", "no room"),
                ],
            ),
            Panel(
                title="Refusals by key",
                description="The ten keys with the most refusals, within the step.",
                queries=[
                    (
                        f"topk(10, sum by (key) (increase(nexus_key_refusals_total{{{HOST}}}[{EVERY}])))",
                        "{{key}}",
                    )
                ],
            ),
        ],
    },
)
