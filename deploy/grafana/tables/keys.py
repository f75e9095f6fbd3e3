"""Clients' keys: how much each uses, and what is refused."""

from __future__ import annotations

from panels import EVERY, HOST, Dashboard, Panel, rate

_NAMED = "* on (key) group_left (name) max by (key, name) (nexus_key_info)"
"""Adds a key's name to an expression by key."""

KEYS = Dashboard(
    uid="nexus-keys",
    title="Nexus / Keys",
    description="Requests and tokens by client's key and by team, and what was refused. Empty without [auth].",
    runbook="processes.md",
    variables=("instance",),
    rows={
        "Use": [
            Panel(
                title="Keys",
                kind="stat",
                description="Keys by state, on the host with the most.",
                queries=[(f"max by (state) (nexus_keys{{{HOST}}})", "{{state}}")],
            ),
            Panel(
                title="Requests by team",
                unit="reqps",
                stacked=True,
                description="Finished requests; none is a key without a team.",
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
                description="Tokens a second of the ten keys with the most, by id and name.",
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
                description="Requests refused because of who sent them, within the step.",
                queries=[
                    (
                        f"sum by (reason) (increase(nexus_key_refusals_total{{{HOST}}}[{EVERY}]))",
                        "{{reason}}",
                    )
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
