"""Writes the pages that come from tables of the program, and the tables within written pages.

Run it with `make pages` or `python docs/generate.py`. A test fails if a page differs.
"""

import ast
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import msgspec

from nexus.cli.main import COMMANDS, cli
from nexus.cli.output import EXIT_STATUSES
from nexus.config.access_records import Key, Team
from nexus.config.backend_records import BackendConfig, ModelConfig
from nexus.config.budget_records import Budget
from nexus.config.checking import describe
from nexus.config.cost_records import Price, Tier
from nexus.config.endpoint_records import CustomEndpoint
from nexus.config.fields import Section, hints_of
from nexus.config.limit_records import Limit, OwnLimits
from nexus.config.records import ENVIRONMENT, NOT_SUPPORTED, RESTART_ONLY, Config
from nexus.config.routing_records import Policy
from nexus.config.template import documentation, field_default, template, toml
from nexus.dialects.translation import TRANSLATIONS
from nexus.errors import FAULTS
from nexus.metrics.families import FAMILIES
from nexus.proxy.endpoints import ENDPOINTS

ROOT = Path(__file__).parent.parent

METRICS = """\
# Metrics

Every family on `/metrics`, generated from `nexus/metrics/families.py`. Counters and histograms are
sums over all processes of the gateway, including those that have ended. They start at zero when
the gateway starts.

A label value is the real name with every character outside `[A-Za-z0-9_]` written as `_`;
`nexus_model_info` and `nexus_backend_info` map it to the real name. Four values are special:

- `unknown`: a model that no backend and no configuration names.
- `none`: no backend.
- `other`: names beyond `[metrics] max_models` and `max_backends`. A gauge of `other` is the worst
  of its members.
- `retired`: names that have been gone for `[metrics] retire_after_hours`. Their series end and
  their counts are added up here, so the sum of a family never decreases.
"""
SIMILAR = """\
## Similar metrics elsewhere

OpenTelemetry's conventions for generative AI and vLLM have similar metrics. Theirs are measured in
a server or a client, Nexus's in the gateway between them. The labels `model` and `backend` are
`gen_ai.request.model` and `server.address` there. The label `type` of tokens is
`gen_ai.token.type`, with `input` for `prompt` and `output` for `completion`.

| Nexus | OpenTelemetry | vLLM |
|---|---|---|
"""
WRITERS = {
    "workers": "each process, summed",
    "health": "the health process",
    "scrape": "the process that serves the scrape",
}
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
"""Family → its counterparts in OpenTelemetry's conventions and in vLLM, if there are any."""


def metrics() -> str:
    """docs/metrics.md, from the table of families."""
    lines = [METRICS]
    for family in FAMILIES:
        lines += [f"## {family.name}", "", family.help, ""]
        lines.append(f"- {family.kind}, from {WRITERS[family.source]}")
        if family.labels:
            lines.append(f"- labels: {', '.join(f'`{label}`' for label in family.labels)}")
        if family.buckets:
            lines.append(f"- buckets: {', '.join(f'{bound:g}' for bound in family.buckets)}")
        lines.append("")
    rows = [_row(f"`{name}`", *map(_names, elsewhere)) for name, elsewhere in ELSEWHERE.items()]
    return "\n".join([*lines, SIMILAR + "\n".join(rows), ""])


def _names(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", ") if name)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


ERRORS = """\
# Errors

Every error that a client can get, generated from `nexus/errors.py`. The body has the form of the
client's API, OpenAI's or Anthropic's. A 503 has `context` beside its `error`. `error_type` is the
label in `nexus_errors_total`. *Retried* says whether another backend is tried first.

| code | status | `error_type` | retried | meaning |
|---|---|---|---|---|
"""


def errors() -> str:
    """docs/errors.md, from the table of faults."""
    rows = [
        _row(
            f"`{fault.code}`",
            str(fault.status or "the backend's"),
            f"`{fault.error_type}`",
            "yes" if fault.retry else "no",
            fault.description,
        )
        for fault in FAULTS.values()
    ]
    return "\n".join([ERRORS + "\n".join(rows), ""])


CONFIGURATION = """\
# Configuration

Every section and key, generated from the records in `nexus/config`.
[nexus.example.toml](../nexus.example.toml) has the same as a file, which `nexus config init`
writes. `nexus config check` finds mistakes in your file. `nexus config show --origin` prints the
values in use and their sources.

The file is the one that `-c` names, else `$NEXUS_CONFIG`, else `nexus.toml` in the directory where
the gateway starts. The command line overrides the environment, which overrides the file, which
overrides the defaults.

A misspelt key or a wrong value stops the start; a running gateway keeps its old configuration. The
message names the file, the key, the value, and what is allowed.

`nexus reload` applies every key except those marked *start*, which a process reads at its start.
"""
UNSUPPORTED = """\
## Accepted, and without effect

Existing configuration files may have these keys. They are checked, and a warning at the start says
which have no effect.

| key | instead |
|---|---|
"""
VARIABLES = """\

## Environment

| variable | |
|---|---|
| `NEXUS_CONFIG` | the file |
"""
SECRETS = """\
| `NEXUS_API_KEY` | a client's key for commands such as `nexus models`, if clients need one |
| `NEXUS_ADMIN_TOKEN` | the operators' token, unless `[admin] token_env` names another variable |
| `NEXUS_URL`, `NEXUS_OPERATIONS_URL` | the gateway's address and operations port, for commands |
| `NEXUS_MAX_REQUESTS` | requests after which a worker is replaced; default: never |
| `NEXUS_SAVED` | file of saved backends; default: beside the configuration, as `nexus.saved.json` |

The file never contains a backend's key or the operators' token. It names an environment variable,
or a credential that systemd provides (`LoadCredential=`) in `$CREDENTIALS_DIRECTORY`.
"""


LISTS: dict[str, type[Section]] = {"teams": Team, "keys": Key, "limits": Limit, "budgets": Budget}
"""Lists of tables, by their key."""


def configuration() -> str:
    """docs/configuration.md, from the records of the configuration."""
    lines = [CONFIGURATION]
    for name, hint in hints_of(Config).items():
        if name == "backends":
            lines += _section("[[backends]]", BackendConfig, ("backends",))
            lines += _section("[[backends.models]]", ModelConfig, ("backends", "models"))
        elif isinstance(hint, type) and issubclass(hint, Section) and name not in NOT_SUPPORTED:
            lines += _section(f"[{name}]", hint, (name,))
        if name == "auth":
            for title, record in LISTS.items():
                lines += _section(f"[[{title}]]", record, (title,))
                if title == "keys":
                    lines += _section(
                        "[keys.limits], [teams.limits]", OwnLimits, ("keys", "limits")
                    )
        if name == "endpoints":
            lines += _section("[[endpoints.custom]]", CustomEndpoint, (name, "custom"))
        if name == "routing":
            lines += _section("[[routing.policies]]", Policy, (name, "policies"))
        if name == "costs":
            lines += _section("[[costs.price]]", Price, (name, "price"))
            lines += _section("[costs.price.above]", Tier, (name, "price", "above"))
    unsupported = [_row(f"`{key}`", meaning) for key, meaning in NOT_SUPPORTED.items()]
    variables = [
        _row(f"`{variable}`", f"`[{section}] {key}`")
        for variable, (section, key) in ENVIRONMENT.items()
    ]
    lines += [UNSUPPORTED + "\n".join(unsupported), VARIABLES + "\n".join(variables), SECRETS]
    return "\n".join(lines)


def _section(title: str, record: type[Section], path: tuple[str, ...]) -> list[str]:
    """A table of a section's keys, then the sections within it."""
    lines = [
        f"## {title}",
        "",
        " ".join((record.__doc__ or "").split()),
        "",
        "| key | default | takes | |",
        "|---|---|---|---|",
    ]
    defaults = {field.encode_name: field for field in msgspec.structs.fields(record)}
    within: list[str] = []
    for name, hint in hints_of(record).items():
        dotted = ".".join((*path, name))
        if dotted in (*NOT_SUPPORTED, "routing.policies", "backends.models", "endpoints.custom"):
            continue
        if isinstance(hint, type) and issubclass(hint, Section):
            within += _section(f"[{dotted}]", hint, (*path, name))
            continue
        note = documentation(hint) + (" *start*" if dotted in RESTART_ONLY else "")
        lines.append(
            _row(f"`{name}`", _default(field_default(defaults[name])), describe(hint), note)
        )
    return [*lines, "", *within]


def _default(value: object) -> str:
    if value is msgspec.NODEFAULT:
        return "required"
    return "unset" if value is None else f"`{toml(value)}`"


CLI = """\
# Command line

The output of `nexus COMMAND --help` for every command. `--json` is for programs: its output has a
schema, which the tests check. There is no colour if the output is not a terminal or `$NO_COLOR` is
set.

| exit status | |
|---|---|
"""
FINDING = """
A command finds the gateway as `nexus serve` does: by `-c`, `$NEXUS_CONFIG`, `nexus.toml`, and the
environment. `--url` or `$NEXUS_URL` name another one, on another host, too.
"""


def commands() -> str:
    """docs/cli.md, from the commands themselves."""
    statuses = [_row(str(status), meaning) for status, meaning in EXIT_STATUSES.items()]
    lines = [CLI + "\n".join(statuses), FINDING]
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


def architecture() -> str:
    """docs/architecture.md, with the table of folders from the sources."""
    return _marked("docs/architecture.md", "folders", folders())


_BODIES = {"json": "none", "none": "none", "multipart": "a form", "any": "a body of any type"}


def api() -> str:
    """docs/api.md, with the table of proxied endpoints."""
    lines = ["| endpoint | | prompt | streams |", "|---|---|---|---|"]
    for endpoint in ENDPOINTS:
        prompts = [
            " with ".join(f"`{name}`" for name in (*prompt.beside, prompt.name))
            for prompt in endpoint.form.prompts
        ]
        lines.append(
            _row(
                f"`{'`, `'.join(endpoint.methods)} {endpoint.path}`"
                + "".join(f", `{path}`" for path in endpoint.other_paths),
                endpoint.summary,
                " or ".join(prompts) or _BODIES[endpoint.body],
                "yes" if endpoint.streams else "no",
            )
        )
    return _marked("docs/api.md", "endpoints", "\n".join([*lines, ""]))


def translations() -> str:
    """docs/translation.md, with the fate of each field of a request."""
    lines: list[str] = []
    for one in TRANSLATIONS.values():
        lines += [f"### {one.name}", "", "| field | | |", "|---|---|---|"]
        lines += [
            _row(f"`{field}`", rule.fate, rule.note) for field, rule in one.request_rules.items()
        ]
        lines.append("")
    return _marked("docs/translation.md", "fields", "\n".join(lines))


def balancer(name: str) -> str:
    """A balancer's file, with the paths of the proxied endpoints in its patterns."""
    paths = "|".join(
        endpoint.path.removeprefix("/v1/").replace("{id}", "[^/]+") for endpoint in ENDPOINTS
    )
    pattern = r"\(chat/completions(?:\|[a-z_/\[\]^+]+)*?(\|models)?\)"
    file, count = re.subn(
        pattern, lambda match: f"({paths}{match[1] or ''})", (ROOT / name).read_text()
    )
    assert count, f"{name} has no list of endpoints"
    others = ["/v1/key", *(path for endpoint in ENDPOINTS for path in endpoint.other_paths)]
    for pattern, list_of in (
        (r"(/v1/models/\.\+)(?:\|/[a-z0-9/]+)*", "|"),
        (r"(for_clients path)(?: /\S+)+", " "),
    ):
        file = re.sub(
            pattern,
            lambda match, mark=list_of: match[1] + "".join(mark + path for path in others),
            file,
        )
    return file


def _marked(name: str, mark: str, table: str) -> str:
    """A page with `table` between its marks."""
    marks = rf"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)"
    page, count = re.subn(
        marks, lambda match: match[1] + table + match[2], (ROOT / name).read_text(), flags=re.DOTALL
    )
    assert count == 1, f"{name} has one pair of marks for {mark}"
    return page


def folders() -> str:
    """Each folder of the package with its purpose and its imports, from the top level down."""
    rows = [
        _row(
            f"`{part}`",
            _purpose(part),
            ", ".join(f"`{name}`" for name in _imports(part)) or "nothing",
        )
        for level in reversed(levels())
        for part in sorted(level)
        if part != "__main__"
    ]
    return "\n".join(["| folder | content | imports |", "|---|---|---|", *rows, ""])


def levels() -> list[set[str]]:
    """The levels that imports may cross downwards, as tests/test_layers.py has them."""
    for node in ast.parse((ROOT / "tests" / "test_layers.py").read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "LEVELS":
            assert node.value
            return ast.literal_eval(node.value)
    raise LookupError("tests/test_layers.py has no LEVELS")


def _sources(part: str) -> list[Path]:
    folder = ROOT / "nexus" / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def _purpose(part: str) -> str:
    folder = ROOT / "nexus" / part
    source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return (
        (ast.get_docstring(ast.parse(source.read_text())) or "").split("\n\n")[0].replace("\n", " ")
    )


def _imports(part: str) -> list[str]:
    """The other folders that its modules import, in the order of the levels."""
    names: set[str] = set()
    for source in _sources(part):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                prefix = "nexus." if node.module == "nexus" else ""
                names |= {
                    f"{prefix}{alias.name}" if prefix else node.module for alias in node.names
                }
    parts = {name.split(".")[1] for name in names if name.startswith("nexus.")} - {part}
    return [name for level in reversed(levels()) for name in sorted(level) if name in parts]


BALANCERS = ("deploy/haproxy/nexus.cfg", "deploy/nginx/server.conf", "deploy/apache/server.conf")
PAGES: dict[str, Callable[[], str]] = {
    **{name: partial(balancer, name) for name in BALANCERS},
    "docs/api.md": api,
    "docs/architecture.md": architecture,
    "docs/cli.md": commands,
    "docs/configuration.md": configuration,
    "docs/errors.md": errors,
    "docs/metrics.md": metrics,
    "docs/translation.md": translations,
    "nexus.example.toml": template,
}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (ROOT / name).write_text(make())
