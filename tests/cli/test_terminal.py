"""Names and texts that come from elsewhere cannot steer a terminal, nor make up lines of a log
or a table."""

import json
import logging
import subprocess
import sys
import urllib.error
import urllib.request

import click
import pytest

from nexus.cli.output import safe, state, table
from nexus.runtime.log import make_formatter
from nexus.runtime.text import printable
from tests.support.processes import clean_environ

HOSTILE = [
    "\x1b]0;pwned\x07\x1b[2J",
    "a\nFAKE 12:00:00  200  m  b  1 ms",
    "a\r\x1b[1A\x1b[2KALL IS WELL",
    "\x7f\x85\x9b2J",
    "line\u2028separator \u2029paragraph",
    "\u202etxt.exe \u2066isolate\u2069",
    "\U000e0001tag \ud800",
]
OBEYED = [
    *map(chr, range(32)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_a_terminal_would_obey_is_escaped(text):
    assert printable(text).isprintable()
    assert json.loads(f'"{printable(text)}"') == text  # and can be read back
    assert not set(printable(text, keep="\n")) & set(OBEYED) - {"\n"}
    assert "\n" not in table(("MODEL",), [(text,)]).partition("\n")[2]


def test_plain_text_stays():
    for text in ("llama3.2:3b", "Grüße, 你好, हिन्दी, 😀", ""):
        assert printable(text) == text


def test_our_own_colours_stay_and_no_others():
    assert safe(state("healthy")) == click.style("healthy", fg="green")
    assert (
        safe("\x1b[2J\x1b[31mx\x1b[0m\x1b[8m") == r"\u001b[2J" + "\x1b[31mx\x1b[0m" + r"\u001b[8m"
    )


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_log_lines(text):
    made = logging.LogRecord("nexus.proxy", logging.INFO, __file__, 1, "request", None, None)
    vars(made).update(model=text)
    line = make_formatter("pretty").format(made)
    assert line.isprintable()
    line = make_formatter("json").format(made)
    assert line.isprintable()
    assert json.loads(line)["model"] == text


def nexus(gateway, *words):
    return subprocess.run(
        [sys.executable, "-m", "nexus", *words, "-c", str(gateway.file)],
        capture_output=True, timeout=60, env=clean_environ(),
    )  # fmt: skip


@pytest.mark.e2e
def test_history_and_chat(gateway, demo):
    for name in HOSTILE[:-1]:
        body = json.dumps({"model": name, "messages": [{"role": "user", "content": "x"}]}).encode()
        request = urllib.request.Request(
            f"{gateway.base}/v1/chat/completions",
            data=body,
            headers={"content-type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        refused.value.close()
    shown = nexus(gateway, "history", "-n", "50").stdout.decode()
    assert r"\u001b]0;pwned\u0007" in shown
    assert len(shown.splitlines()) == 1 + len(HOSTILE[:-1])
    as_json = nexus(gateway, "history", "--json").stdout.decode()
    assert {request["asked_model"] for request in json.loads(as_json)} == set(HOSTILE[:-1])
    refused = nexus(gateway, "chat", HOSTILE[0], "x").stderr.decode()
    assert "pwned" in refused
    for text in (shown, as_json, refused, gateway.output()):
        assert not set(text) & set(OBEYED) - {"\n"}


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=1", 200),
        ("limit=1000", 200),
        ("limit=" + "9" * 5000, 400),
        ("limit=1001", 400),
        ("limit=0", 400),
        ("limit=01", 400),
        ("limit=", 400),
        ("limit=-1", 400),
        ("limit=%C2%B2", 400),
        ("status=success", 200),
        ("status=", 400),
        ("status=Success", 400),
        ("sttatus=success", 400),
    ],
    ids=lambda value: str(value)[:20],
)
def test_filters_of_the_history_are_exact(gateway, query, status):
    for base in (gateway.base, gateway.operations):
        if status == 200:
            with urllib.request.urlopen(f"{base}/v1/history?{query}", timeout=10) as answer:
                assert answer.status == 200
            continue
        with (
            pytest.raises(urllib.error.HTTPError) as refused,
            urllib.request.urlopen(f"{base}/v1/history?{query}", timeout=10),
        ):
            pass
        with refused.value as error:
            assert (error.code, json.load(error)["error"]["code"]) == (400, "invalid_request")
