"""Addresses in the configuration: what is refused, and in which words."""

from pathlib import Path

import pytest

from nexus.config import ConfigError, load
from nexus.config.addresses import listen_address, proxies_ignored, url_problem, url_to
from tests.support.certificates import Authority


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://h:8000/v1/models", "it ends in /models, which Nexus appends; remove that"),
        (
            "https://h/v1/chat/completions/",
            "it ends in /chat/completions, which Nexus appends; remove that",
        ),
        ("http://h:0", "it takes a port from 1 to 65535"),
        ("http://h:65536", "it is no address (Port out of range 0-65535)"),
        (
            "http://b\u00fccher.example",
            "it takes ASCII only; write the host as xn--bcher-kva.example",
        ),
        ("http://h/\u00fc", "it takes ASCII only"),
        ("http://[fe80::1]:8000", "a link-local address needs its interface, as in [fe80::1%eth0]"),
        (f"http://{'a' * 64}.example", "its host is not a valid DNS name"),
        ("http://a..b", "its host is not a valid DNS name"),
        (
            "http://h?api-version=1",
            "it takes scheme, host, port and path only; set a query with query = { … }",
        ),
        ("ftp://h", "it takes an address that starts with http:// or https:// and names a host"),
        ("http://h", None),
        ("http://under_score:8000", None),
        ("http://[::1]:8000/v1", None),
        ("http://[fe80::1%eth0]:8000", None),
        ("https://h/v1beta/openai/", None),
        ("http://models:8000", None),
    ],
)
def test_url(url, problem):
    assert url_problem(url) == problem


def problems(directory: Path, backend: str, *, url: str = "https://h") -> list[str]:
    """What is wrong with a file that has these lines for a backend, without the file's name and
    the table's."""
    file = directory / "nexus.toml"
    file.write_text(f'[[backends]]\nname = "b"\nurl = "{url}"\n{backend}\n')
    try:
        load(file, environ={})
    except ConfigError as error:
        return [problem.partition("[backends[0]] ")[2] for problem in error.problems]
    return []


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ca")


def test_files_that_can_be_used(tmp_path, authority):
    client = authority.issue("client")
    pair = f'client_cert_file = "{client.cert}"\nclient_key_file = "{client.key}"'
    assert problems(tmp_path, f'ca_file = "{authority.ca}"\n{pair}') == []
    assert problems(tmp_path, f'client_cert_file = "{client.both()}"') == []


def test_files_that_cannot(tmp_path, authority):
    client, other, text = authority.issue("client"), authority.issue("other"), tmp_path / "text"
    text.write_text("no certificate")
    for lines, wanted in {
        f'ca_file = "{tmp_path}/none"': f'ca_file = "{tmp_path}/none" cannot be used; there is no '
        f"such "
        f"file.",
        f'ca_file = "{tmp_path}"': f'ca_file = "{tmp_path}" cannot be used; it cannot be read (Is '
        f"a "
        f"directory).",
        'ca_file = "ca.pem"': 'ca_file = "ca.pem" cannot be used; it takes an absolute path.',
        f'ca_file = "{text}"': f'ca_file = "{text}" cannot be used; it holds no certificate in PEM '
        f"form.",
        f'client_key_file = "{client.key}"': f'client_key_file = "{client.key}" needs '
        f"client_cert_file "
        f"beside "
        f"it.",
        f'client_cert_file = "{client.cert}"': (
            f'client_cert_file = "{client.cert}" cannot be used; it lacks the certificate or, '
            f"without "
            "client_key_file, its unencrypted key in PEM form."
        ),
        f'client_cert_file = "{client.cert}"\nclient_key_file = "{other.key}"': (
            f'client_cert_file = "{client.cert}" cannot be used; the key in {other.key} is not the '
            f"certificate's."
        ),
        f'client_cert_file = "{text}"\nclient_key_file = "{client.key}"': (
            f'client_cert_file = "{text}" cannot be used; it, or {client.key}, is not in PEM form, '
            f"or "
            f"the key is "
            "encrypted."
        ),
    }.items():
        assert problems(tmp_path, lines) == [wanted]
    assert problems(tmp_path, f'ca_file = "{authority.ca}"', url="http://h") == [
        f'ca_file = "{authority.ca}" has no effect, because url is not https://; change one.'
    ]


@pytest.mark.parametrize("path", ["/v1?x=1", "/a b", "/\u00fc", "/v1/models"])
def test_base_path(tmp_path, path):
    [problem] = problems(tmp_path, f'base_path = "{path}"')
    assert problem.startswith(f'base_path = "{path}" is not allowed; it ')
    assert problems(tmp_path, 'base_path = ""') == []


@pytest.mark.parametrize(
    ("text", "address", "url"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464), "http://127.0.0.1:9464"),
        ("0.0.0.0:9464", ("0.0.0.0", 9464), "http://127.0.0.1:9464"),
        ("[::]:9464", ("::", 9464), "http://[::1]:9464"),
        ("[::1]:9464", ("::1", 9464), "http://[::1]:9464"),
    ],
)
def test_listen(text, address, url):
    assert listen_address(text) == address
    assert url_to(*address) == url


@pytest.mark.parametrize("host", ["::", "[::]"])
def test_a_host_may_have_its_brackets(tmp_path, host):
    file = tmp_path / "nexus.toml"
    file.write_text(f'[server]\nhost = "{host}"\n')
    assert load(file, environ={}).config.server.host == "::"


@pytest.mark.parametrize(
    ("environ", "warning"),
    [
        ({}, None),
        ({"NO_PROXY": "*"}, None),
        ({"https_proxy": ""}, None),
        (
            {"https_proxy": "http://proxy:3128"},
            "HTTPS_PROXY in the environment has no effect: backends are reached directly, without "
            "a "
            "proxy.",
        ),
        (
            {"HTTP_PROXY": "http://proxy:3128", "HTTPS_PROXY": "http://proxy:3128"},
            "HTTP_PROXY and HTTPS_PROXY in the environment have no effect: backends are reached "
            "directly, "
            "without a proxy.",
        ),
    ],
)
def test_proxies(tmp_path, environ, warning):
    assert proxies_ignored(environ) == warning
    file = tmp_path / "nexus.toml"
    file.write_text('[[backends]]\nname = "b"\nurl = "http://h"\n')
    assert load(file, environ=environ).warnings == ([warning] if warning else [])
