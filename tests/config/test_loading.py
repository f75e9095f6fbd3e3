"""Configuration: precedence, messages, warnings."""

from pathlib import Path

import pytest

from nexus.config import ConfigError, load
from nexus.config.addresses import listen_address
from nexus.config.loading import process_config

ORIGINAL = """
[server]
host = "0.0.0.0"
port = 8000
request_timeout_seconds = 300
max_concurrent_requests = 1000
[discovery]
enabled = true
service_types = ["_ollama._tcp.local", "_llm._tcp.local"]
grace_period_seconds = 60
[health_check]
enabled = true
interval_seconds = 30
timeout_seconds = 5
failure_threshold = 3
recovery_threshold = 2
[routing]
strategy = "smart"
max_retries = 2
[routing.weights]
priority = 50
load = 30
latency = 20
[routing.aliases]
"gpt-4" = "llama3:70b"
[routing.fallbacks]
"llama3:70b" = ["qwen2:72b", "mixtral:8x7b"]
[[routing.policies]]
model_pattern = "code-*"
privacy = "restricted"
min_tier = 3
[routing.budget]
monthly_limit_usd = 100.0
soft_limit_percent = 75
hard_limit_action = "block_cloud"
reconciliation_interval_secs = 60
[[backends]]
name = "local"
url = "http://localhost:11434"
type = "ollama"
priority = 1
zone = "restricted"
tier = 2
[[backends]]
name = "cloud"
url = "https://api.openai.com"
type = "openai"
api_key_env = "OPENAI_API_KEY"
[[backends]]
name = "gemini"
url = "https://generativelanguage.googleapis.com"
type = "google"
[quality]
error_rate_threshold = 0.5
ttft_penalty_threshold_ms = 3000
metrics_interval_seconds = 30
[queue]
enabled = true
max_size = 100
max_wait_seconds = 30
[logging]
level = "info"
format = "pretty"
component_levels = {routing = "debug"}
enable_content_logging = false
[lifecycle]
vram_buffer_percent = 10
[fleet]
min_sample_days = 7
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nexus.toml"


def problems(file: Path, text: str, **environ: str) -> list[str]:
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(file, environ=environ)
    return [problem.removeprefix(f"{file}: ") for problem in refused.value.problems]


def test_an_unmodified_configuration_of_an_earlier_gateway(file):
    file.write_text(ORIGINAL)
    loaded = load(file, environ={"OPENAI_API_KEY": "sk-1"})
    assert [backend.name for backend in loaded.config.backends] == ["local", "cloud", "gemini"]
    assert loaded.config.routing.aliases == {"gpt-4": "llama3:70b"}
    not_built, no_prices, open_to_all = loaded.warnings
    assert "[routing.budget] monthly_limit_usd has no effect without prices" in no_prices
    assert "whoever reaches port 8000 uses the backends" in open_to_all
    for section in (
        "discovery",
        "lifecycle",
        "fleet",
        "routing.budget.reconciliation_interval_secs",
    ):
        assert f"[{section}]" in not_built


OPENAI = '[[backends]]\nname = "{0}"\nurl = "https://{0}.example/v1"\ntype = "openai"\n'


@pytest.mark.parametrize(
    ("more", "warned"),
    [("", True), ("forward_authorization = true", False), ("forward_authorization = false", False)],
)
def test_clients_keys_for_several_hosts_by_default_are_a_warning(file, more, warned):
    file.write_text(OPENAI.format("one") + OPENAI.format("two") + more)
    told = [
        warning
        for warning in load(file, environ={}).warnings
        if "clients' own keys go to" in warning
    ]
    assert [warning.partition(": clients")[2] for warning in told] == [
        "' own keys go to backends of several hosts: one, two; "
        "set forward_authorization for each, true for the one that issued the keys."
    ] * warned


@pytest.mark.parametrize(
    ("older", "section", "key"),
    [
        ("[quality]\nttft_threshold_ms = 100", "quality", "ttft_threshold_ms"),
        ("[queue]\ndefault_timeout_seconds = 3", "queue", "default_timeout_seconds"),
        ('[routing.policies.default]\nprivacy = "restricted"', "routing", "policies"),
    ],
)
def test_older_spellings_are_accepted(file, older, section, key):
    file.write_text(older)
    assert getattr(getattr(load(file, environ={}).config, section), key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprot = 1", "[server] has no key prot; did you mean port?"),
        ("[sever]\nport = 1", "the file has no key sever; did you mean server?"),
        (
            "[routing.weights]\nlatecny = 1",
            "[routing.weights] has no key latecny; did you mean latency?",
        ),
        (
            "[server]\nport = 99999",
            "[server] port = 99999 is not allowed; it takes a whole number from 1 to 65535.",
        ),
        (
            '[server]\nport = "80"',
            "[server] port = '80' is not allowed; it takes a whole number from 1 to 65535.",
        ),
        (
            "[health_check]\nenabled = 1",
            "[health_check] enabled = 1 is not allowed; it takes true or false.",
        ),
        (
            "[health_check]\ninterval_seconds = 0",
            "[health_check] interval_seconds = 0 is not allowed; it takes a number above 0 to "
            "86400.",
        ),
        (
            '[routing]\nstrategy = "best"',
            "[routing] strategy = 'best' is not allowed; it takes one of",
        ),
        ("server = 3", "server = 3 is not allowed; it takes a table."),
        (
            "[backends]\nname = 'x'",
            "backends = {'name': 'x'} is not allowed; it takes a list of tables, written "
            "[[backends]]",
        ),
        ("[[backends]]\nname = 'x'", "[backends[0]] lacks url, which has no default."),
        (
            "[[backends]]\nname = 'x'\nurl = 'localhost:11434'",
            '[backends[0]] url = "localhost:11434" is not allowed; it takes an address that starts '
            "with http",
        ),
        (
            "[[backends]]\nname = 'x'\nurl = 'http://k:s@h'",
            "it must not contain a key; name the variable that holds the key in api_key_env.",
        ),
        (
            "[[backends]]\nname = 'x'\nurl = 'http://h'\n"
            "[[backends]]\nname = 'x'\nurl = 'http://g'",
            '[backends[1]] name = "x" is used twice',
        ),
        (
            "[[backends]]\nname = 'x'\nurl = 'http://h'\ndiscover_models = false",
            "[backends[0]] discover_models = false leaves it without models; state them in "
            "[[backends.models]].",
        ),
        (
            "[[backends]]\nname = 'x'\nurl = 'http://h'\n[[backends.models]]\nname = 'm'\n"
            "[[backends.models]]\nname = 'm'",
            '[backends[0]] models name = "m" is used twice; state each model once.',
        ),
        *(
            (
                f"[{table}]\n{key} = {value}",
                f"[{table}] {where} is not allowed; it takes an IP address or the name of a host, "
                "without a port.",
            )
            for table, key, value, where in (
                ("server", "host", "'127.0.0.1:8000'", 'host = "127.0.0.1:8000"'),
                ("server", "host", "'http://localhost'", 'host = "http://localhost"'),
                ("server", "host", "'*'", 'host = "*"'),
                ("admin", "hosts", "['prom', 'prom:9464']", 'hosts = "prom:9464"'),
            )
        ),
        *(
            (
                f"[server]\n{key} = '~/nexus'",
                f"[server] {key} is not allowed to begin with ~; write the whole path.",
            )
            for key in ("run_dir", "state_dir", "spool_dir")
        ),
        (
            "[health_check]\nlisten = '*:9464'",
            '[health_check] listen = "*:9464" is not allowed; it takes host:port',
        ),
        (
            "[health_check]\nlisten = 9464",
            "[health_check] listen = 9464 is not allowed; it takes host:port, such as",
        ),
        (
            "[health_check]\nlisten = 'nine'",
            '[health_check] listen = "nine" is not allowed; it takes host:port',
        ),
        (
            "[server]\nmax_buffered_bytes = 2048",
            "[server] max_buffered_bytes = 2048 is not allowed; it takes at least "
            "max_request_bytes, "
            "which is 33554432.",
        ),
        (
            "[cors]\norigins = ['https://a.example/']",
            '[cors] origins = "https://a.example/" is not allowed; it takes "*", or an origin as a '
            "browser sends it",
        ),
        ("[cors]\norigins = ['a.example']", '[cors] origins = "a.example" is not allowed'),
        (
            "[routing.aliases]\na = 'b'\nb = 'a'",
            '[routing.aliases] "a" does not end within 3 steps',
        ),
        ("[routing.fallbacks]\na = ['a']", '[routing.fallbacks] "a" falls back to itself'),
        (
            "[routing.aliases]\ngpt-4.1 = 'b'",
            "it takes a table, each value a text; write a name with dots in quotes.",
        ),
        (
            "[[backends]]\nname = 'x'\nurl = \"http://h\\n\"",
            '[backends[0]] url = "http://h\\n" is not allowed; it takes scheme, host',
        ),
        (
            "[auth]\nheader = 'X-Key'",
            "[auth] header = 'X-Key' is not allowed; it takes the name of a header that begins "
            "with X-Nexus-.",
        ),
        (
            "[[keys]]\nid = 'k'\nsha256 = ['abc']",
            "[keys[0]] sha256 = ['abc'] is not allowed; it takes a list of one or two, each of 64 "
            "hexadecimal digits",
        ),
        (
            "[health_check]\nlisten = '0.0.0.0:8000'",
            '[health_check] listen = "0.0.0.0:8000" is the address of clients; take another port '
            "than [server] port.",
        ),
        (
            "[[limits]]\nname = 'a'\nparallel = 1\nmatch = { endpoint = 'chat_completion' }",
            '[[limits]] "a" match endpoint = "chat_completion" matches nothing; did you mean '
            "chat_completions?",
        ),
        (
            "[[teams]]\nname = 'research'\n[[budgets]]\nname = 'a'\nusd = '1'\n"
            "match = { team = 'reserch' }",
            '[[budgets]] "a" match team = "reserch" matches nothing; did you mean research?',
        ),
        ("[server", "this is not TOML"),
        (f"[server]\nport = {'9' * 5000}", "this is not TOML"),
        (f"x = {'[' * 5000}", "this is not TOML"),
    ],
)
def test_each_fault_is_one_sentence_that_names_it(file, text, message):
    found = problems(file, text)
    assert message in found[0]
    assert "\n" not in found[0]


def test_a_pattern_that_matches_nothing_yet_is_a_warning(file):
    file.write_text("[[limits]]\nname = 'a'\nparallel = 1\nmatch = { team = 'research*' }\n")
    [warning] = [text for text in load(file, environ={}).warnings if "matches nothing" in text]
    assert '[[limits]] "a" match team = "research*" matches nothing' in warning


def test_ports_are_compared_where_both_are_known(file):
    """A worker knows the environment alone, which may have one of them."""
    file.write_text("[server]\nport = 9464\n[health_check]\nlisten = '127.0.0.1:19464'\n")
    environ = {"NEXUS_PORT": "9464"}
    assert load(file, environ=environ).config.server.port == 9464
    assert process_config(environ).server.port == 9464
    file.write_text("[server]\nhost = '::1'\n[health_check]\nlisten = '0.0.0.0:8000'\n")
    assert load(file, environ={}).config.server.host == "::1"


def test_too_many_backends(file):
    text = "".join(f"[[backends]]\nname = 'b{n}'\nurl = 'http://h'\n" for n in range(501))
    assert problems(file, text) == ["[[backends]] has 501 entries; at most 500 are allowed."]


def test_all_faults_are_reported_at_once(file):
    assert len(problems(file, "[server]\nport = 0\nprot = 1\n[logging]\nlevel = 'loud'")) == 3


def test_precedence(file):
    file.write_text("[server]\nport = 1001\nhost = 'file'\nworkers = 1")
    loaded = load(
        file, environ={"NEXUS_HOST": "env", "NEXUS_WORKERS": "2"}, overrides={"server.workers": 3}
    )
    server = loaded.config.server
    assert (server.port, server.host, server.workers) == (1001, "env", 3)
    assert loaded.origins == {
        "server.port": str(file),
        "server.host": "environment variable NEXUS_HOST",
        "server.workers": "the command line",
    }


def test_a_wrong_value_is_reported_although_the_environment_replaces_it(file):
    """The next start may not have that variable, or that option."""
    found = problems(file, "[server]\nport = '80'\n[logging]\nlevel = 1", NEXUS_PORT="81")
    assert found == [
        "[server] port = '80' is not allowed; it takes a whole number from 1 to 65535.",
        "[logging] level = 1 is not allowed; it takes one of "
        '"debug", "error", "info", "trace", "warn".',
    ]


def test_a_byte_order_mark_is_no_fault(file):
    file.write_text("\ufeff[server]\nport = 81", encoding="utf-8")
    assert load(file, environ={}).config.server.port == 81


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("[admin]\ntoken_env = 'TOKEN'", "[admin] protects nothing: token_env names TOKEN, which"),
        ("[admin]\nprotect = ['metrics']", "[admin] protects nothing: token_env names NEXUS_ADMIN"),
        (
            "[auth]\nmode = 'keys'\n[auth.identity]\nfrom = ['::1', '0.0.0.0/0']",
            "[auth.identity] from = ['0.0.0.0/0'] believes everybody: whoever reaches port 8000 "
            "can be any user.",
        ),
        (
            "[server]\nspool_dir = '/nowhere'",
            '[server] spool_dir = "/nowhere" is no directory here',
        ),
        # A name that is too long stands for any error but "there is none".
        (f"[server]\nspool_dir = '/{'x' * 300}/y'", "is no directory here"),
        *(
            (
                f"[request_log]\npath = '{path}'",
                f'[request_log] path = "{path}" is not a file in a directory that exists here',
            )
            for path in ("/", "/nowhere/x.jsonl")
        ),
        (
            f"[[keys]]\nid = 'a'\nsha256 = ['{'0' * 64}']",
            '[[keys]] have no effect with [auth] mode = "off"; set it to "keys".',
        ),
    ],
)
def test_what_protects_or_stores_nothing_is_a_warning(file, text, warned):
    file.write_text(text)
    (warning,) = load(file, environ={}).warnings
    assert warned in warning
    environ = {"TOKEN": "0123456789abcdef", "NEXUS_ADMIN_TOKEN": "0123456789abcdef"}
    assert bool(load(file, environ=environ).warnings) == ("[admin]" not in text)


def test_a_misspelt_variable_is_a_warning(file):
    file.write_text("[[backends]]\nname = 'x'\nurl = 'http://h'\napi_key_env = 'NEXUS_WORKERS_'")
    environ = dict.fromkeys(
        ("NEXUS_WORKER", "NEXUS_WORKERS", "NEXUS_WORKERS_", "NEXUS_API_KEY", "NEXUS_PORT_80_TCP"),
        "1",
    )
    assert load(file, environ=environ).warnings == [
        f"{file}: the environment variable NEXUS_WORKER has no effect; did you mean NEXUS_WORKERS?"
    ]


def test_a_file_that_cannot_be_looked_for(tmp_path):
    with pytest.raises(ConfigError, match="it cannot be read"):
        load(tmp_path / ("x" * 300), environ={})


def test_a_wrong_environment_variable_is_named(file):
    found = problems(file, "", NEXUS_PORT="web")
    assert found == [
        "environment variable NEXUS_PORT: [server] port = 'web' is not allowed; it takes a whole "
        "number from 1 to 65535."
    ]


def test_environment_reads_booleans(file):
    file.write_text("")
    assert load(file, environ={"NEXUS_HEALTH_CHECK": "false"}).config.health_check.enabled is False


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no such file; `nexus config init` writes one"):
        load(tmp_path / "none.toml", environ={})


def test_secrets_are_only_named(file, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    file.write_text("[[backends]]\nname = 'x'\nurl = 'http://h'\napi_key_env = 'SOME_KEY'")
    assert "sk-secret" not in repr(load(file, environ={}).config)


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:80", ("::1", 80)), ("host:0", ("host", 0))],
)
def test_listen_address(text, address):
    assert listen_address(text) == address


@pytest.mark.parametrize(("buffered", "warned"), [(64 << 20, False), (48 << 20, True)])
def test_less_room_than_one_response_may_take_is_a_warning(file, buffered, warned):
    file.write_text(f"[server]\nmax_buffered_bytes = {buffered}\n")
    told = [
        "max_buffered_bytes is below max_answer_bytes" in one
        for one in load(file, environ={}).warnings
    ]
    assert told == [True] * warned
