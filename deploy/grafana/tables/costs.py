"""Costs and budgets."""

from __future__ import annotations

from panels import EVERY, HOST, Dashboard, Panel, rate

COSTS = Dashboard(
    uid="nexus-costs",
    title="Nexus / Costs",
    description="Costs by model, backend, and key, and budgets. Empty without prices and [[budgets]].",
    runbook="costs.md",
    variables=("instance",),
    rows={
        "Costs": [
            Panel(
                title="Cost by model",
                unit="currencyUSD",
                stacked=True,
                description="US dollars of delivered responses, within the step.",
                queries=[
                    (
                        f'sum by (model) (increase(nexus_cost_usd_total{{{HOST},outcome="delivered"}}[{EVERY}]))',
                        "{{model}}",
                    )
                ],
            ),
            Panel(
                title="Cost by key",
                unit="currencyUSD",
                description="The ten keys that cost the most, within the step.",
                queries=[
                    (
                        f"topk(10, sum by (key) (increase(nexus_key_cost_usd_total{{{HOST}}}[{EVERY}])))",
                        "{{key}}",
                    )
                ],
            ),
            Panel(
                title="Cost by type",
                unit="currencyUSD",
                stacked=True,
                description="US dollars by type and outcome, within the step; retried: attempts that failed.",
                queries=[
                    (
                        f"sum by (type, outcome) (increase(nexus_cost_usd_total{{{HOST}}}[{EVERY}]))",
                        "{{type}} {{outcome}}",
                    )
                ],
            ),
            Panel(
                title="Requests without a price",
                unit="reqps",
                description="Requests whose cost is unknown.",
                queries=[(rate("nexus_unpriced_requests_total", HOST, "model"), "{{model}}")],
            ),
        ],
        "Budgets": [
            Panel(
                title="Budgets with the least left",
                unit="percentunit",
                description="The share that is left of the ten budgets that are closest to their end.",
                queries=[
                    (
                        f"bottomk(10, min by (budget, subject) (1 - (nexus_budget_spent_usd{{{HOST}}} + nexus_budget_held_usd{{{HOST}}}) / nexus_budget_limit_usd{{{HOST}}}))",
                        "{{budget}} {{subject}}",
                    )
                ],
            ),
            Panel(
                title="Held for requests in progress",
                unit="currencyUSD",
                description="US dollars that are held, by budget.",
                queries=[(f"sum by (budget) (nexus_budget_held_usd{{{HOST}}})", "{{budget}}")],
            ),
            Panel(
                title="Refusals by budget",
                description="Requests that a budget refused, within the step.",
                queries=[
                    (
                        f"sum by (budget, reason) (increase(nexus_budget_refusals_total{{{HOST}}}[{EVERY}]))",
                        "{{budget}} {{reason}}",
                    )
                ],
            ),
            Panel(
                title="Next reset",
                kind="stat",
                unit="s",
                description="Time until the first of a budget's windows ends.",
                queries=[
                    (
                        f"min by (budget) (nexus_budget_resets_timestamp_seconds{{{HOST}}}) - time()",
                        "{{budget}}",
                    )
                ],
            ),
            Panel(
                title="Cost beyond what was held",
                unit="currencyUSD",
                description="US dollars by which requests cost more than was held, within the step.",
                queries=[
                    (
                        f"sum by (budget) (increase(nexus_budget_overrun_usd_total{{{HOST}}}[{EVERY}]))",
                        "{{budget}}",
                    )
                ],
            ),
        ],
    },
)
