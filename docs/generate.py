"""Writes the pages that come from tables of the program: `python docs/generate.py`. A test fails where they differ."""

from pathlib import Path
from typing import get_type_hints

import click
import msgspec

from nexus.cli.main import COMMANDS, cli
from nexus.cli.output import EXIT_STATUSES
from nexus.config.checking import describe
from nexus.config.records import (
    ENVIRONMENT,
    NOT_SUPPORTED,
    RESTART_ONLY,
    BackendConfig,
    Config,
    ModelConfig,
    Policy,
    Section,
)
from nexus.config.template import documentation, field_default, template, toml
from nexus.errors import FAULTS
from nexus.metrics.families import FAMILIES

ROOT = Path(__file__).parent.parent


def metrics() -> str:
    """docs/metrics.md, from the table of families."""
    who = {
        "workers": "each process, summed",
        "health": "the health process",
        "scrape": "whoever answers the scrape",
    }
    lines = [
        "# Metrics",
        "",
        "Every family on `/metrics`, generated from `nexus/metrics/families.py`. Counters and histograms are sums over",
        "all processes of the gateway, those that have ended included; they begin at zero when the gateway is started.",
        "",
        "A label value is the real name with every character outside `[A-Za-z0-9_]` written as `_`; `nexus_model_info`",
        "and `nexus_backend_info` map it back. `unknown` stands for a model that nobody knows, `none`",
        "for no backend, `other` for names beyond `[metrics] max_models` and `max_backends`, `retired` for those that",
        "have been gone for `retire_after_hours`: their series end, their counts are added up there, so the sum",
        "of a family never falls. A gauge of `other` is the worst of its members.",
        "",
    ]
    for family in FAMILIES:
        lines += [f"## {family.name}", "", family.help, ""]
        lines.append(f"- {family.kind}, from {who[family.source]}")
        if family.labels:
            lines.append(f"- labels: {', '.join(f'`{label}`' for label in family.labels)}")
        if family.buckets:
            lines.append(f"- buckets: {', '.join(f'{bound:g}' for bound in family.buckets)}")
        lines.append("")
    lines += [
        "## The same elsewhere",
        "",
        "What OpenTelemetry's conventions for generative AI and vLLM call the same, or nearly the same: theirs are",
        "seen by a server or a client, ours by the gateway between them. `model` and `backend` are there",
        "`gen_ai.request.model` and `server.address`; `type` of tokens is `gen_ai.token.type`, with `input` for",
        "`prompt` and `output` for `completion`.",
        "",
        "| Nexus | OpenTelemetry | vLLM |",
        "|---|---|---|",
    ]
    for name, (otel, vllm) in ELSEWHERE.items():
        cells = (
            ", ".join(f"`{part}`" for part in names.split(", ") if part) for names in (otel, vllm)
        )
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


ELSEWHERE: dict[str, tuple[str, str]] = {
    "nexus_request_duration_seconds": (
        "gen_ai.server.request.duration",
        "vllm:e2e_request_latency_seconds",
    ),
    "nexus_time_to_first_token_seconds": (
        "gen_ai.server.time_to_first_token",
        "vllm:time_to_first_token_seconds",
    ),
    "nexus_time_per_output_token_seconds": (
        "gen_ai.server.time_per_output_token",
        "vllm:request_time_per_output_token_seconds",
    ),
    "nexus_tokens_total": (
        "gen_ai.client.token.usage",
        "vllm:request_prompt_tokens, vllm:request_generation_tokens",
    ),
    "nexus_pending_requests": ("", "vllm:num_requests_running, vllm:num_requests_waiting"),
    "nexus_queue_depth": ("", "vllm:num_requests_waiting"),
    "nexus_queue_wait_seconds": ("", "vllm:request_queue_time_seconds"),
    "nexus_requests_total": ("", "vllm:request_success_total"),
}
"""What OpenTelemetry's conventions for generative AI and vLLM call the same, or nearly the same."""


def errors() -> str:
    """docs/errors.md, from the table of faults."""
    lines = [
        "# Errors",
        "",
        "Every error that a client can get, generated from `nexus/errors.py`. The body is in OpenAI's form; a 503 has",
        "`context` beside its `error`, as the original does. `error_type` is",
        "the label in `nexus_errors_total`. *Retried* says whether another backend is tried first.",
        "",
        "| code | status | `error_type` | retried | meaning |",
        "|---|---|---|---|---|",
    ]
    for fault in FAULTS.values():
        status = fault.status or "the backend's"
        lines.append(
            f"| `{fault.code}` | {status} | `{fault.error_type}` | {'yes' if fault.retry else 'no'} | {fault.description} |"
        )
    return "\n".join([*lines, ""])


def configuration() -> str:
    """docs/configuration.md, from the records of the configuration."""
    lines = [
        "# Configuration",
        "",
        "Every section and key, generated from `nexus/config/records.py`; [nexus.example.toml](../nexus.example.toml)",
        "has the same as a file, which `nexus config init` writes. `nexus config check` says what is wrong with yours,",
        "`nexus config show --origin` what holds and where each value comes from.",
        "",
        "The file is the one that `-c` names, else `$NEXUS_CONFIG`, else `nexus.toml` where the gateway is started.",
        "The command line goes before the environment, that before the file, that before the defaults. A misspelt key",
        "or a wrong value stops the start, or leaves a running gateway as it is, with one sentence that names the",
        "file, key, value and what is allowed. `nexus reload` takes up every key but those marked *start*, which",
        "hold from a process's start.",
        "",
    ]
    for name, hint in get_type_hints(Config, include_extras=True).items():
        if name == "backends":
            lines += _section("[[backends]]", BackendConfig, ("backends",))
            lines += _section("[[backends.models]]", ModelConfig, ("backends", "models"))
        elif isinstance(hint, type) and issubclass(hint, Section) and name not in NOT_SUPPORTED:
            lines += _section(f"[{name}]", hint, (name,))
        if name == "routing":
            lines += _section("[[routing.policies]]", Policy, (name, "policies"))
    lines += [
        "## Accepted, and without effect yet",
        "",
        "Files of the predecessor may have these; they are checked, and a warning at the start says what is missing.",
        "",
        "| key | what holds instead |",
        "|---|---|",
        *(f"| `{key}` | {meaning} |" for key, meaning in NOT_SUPPORTED.items()),
        "",
        "## Environment",
        "",
        "| variable | |",
        "|---|---|",
        "| `NEXUS_CONFIG` | the file |",
        *(
            f"| `{variable}` | `[{section}] {key}` |"
            for variable, (section, key) in ENVIRONMENT.items()
        ),
        "| `NEXUS_SAVED` | where backends that operators save are kept; else `nexus.saved.json` beside the file |",
        "",
        "A backend's key and the operators' token are never in the file: it names an environment variable, or a",
        "credential that systemd hands over (`LoadCredential=`), which is looked for in `$CREDENTIALS_DIRECTORY`.",
        "",
    ]
    return "\n".join(lines)


def _section(title: str, record: type[Section], path: tuple[str, ...]) -> list[str]:
    """A table of a section's keys, then the sections within it."""
    lines = [
        f"## {title}",
        "",
        (record.__doc__ or "").strip(),
        "",
        "| key | default | takes | |",
        "|---|---|---|---|",
    ]
    defaults = {field.name: field for field in msgspec.structs.fields(record)}
    within: list[str] = []
    for name, hint in get_type_hints(record, include_extras=True).items():
        dotted = ".".join((*path, name))
        if dotted in (*NOT_SUPPORTED, "routing.policies", "backends.models"):
            continue
        if isinstance(hint, type) and issubclass(hint, Section):
            within += _section(f"[{dotted}]", hint, (*path, name))
            continue
        default = field_default(defaults[name])
        shown = (
            "must be given"
            if default is msgspec.NODEFAULT
            else "unset"
            if default is None
            else f"`{toml(default)}`"
        )
        note = documentation(hint) + (" *start*" if dotted in RESTART_ONLY else "")
        lines.append(f"| `{name}` | {shown} | {describe(hint)} | {note} |")
    return [*lines, "", *within]


def commands() -> str:
    """docs/cli.md, from the commands themselves."""
    lines = [
        "# The command line",
        "",
        "What `nexus COMMAND --help` says, for every command. `--json` is for machines: what it prints has a schema,",
        "which the tests hold it against. There is no colour where the output is no terminal, or `$NO_COLOR` is set.",
        "",
        "| exit status | |",
        "|---|---|",
        *(f"| {status} | {meaning} |" for status, meaning in EXIT_STATUSES.items()),
        "",
        "A command finds the gateway as `nexus serve` does: by `-c`, `$NEXUS_CONFIG`, `nexus.toml`, the environment.",
        "`--url` or `$NEXUS_URL` name another one, on another host too.",
        "",
    ]
    for name in COMMANDS:
        lines += _command(name)
    return "\n".join(lines)


def _command(name: str) -> list[str]:
    """A command's help, then that of the commands within it."""
    command = cli
    for part in name.split():
        command = command.get_command(click.Context(command), part)
    options = cli.context_settings["help_option_names"]
    context = click.Context(
        command, info_name=f"nexus {name}", terminal_width=100, help_option_names=options
    )
    lines = [f"## nexus {name}", "", "```text", command.get_help(context).rstrip(), "```", ""]
    for within in getattr(command, "commands", {}):
        lines += _command(f"{name} {within}")
    return lines


PAGES = {
    "docs/cli.md": commands,
    "docs/configuration.md": configuration,
    "docs/errors.md": errors,
    "docs/metrics.md": metrics,
    "nexus.example.toml": template,
}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (ROOT / name).write_text(make())
